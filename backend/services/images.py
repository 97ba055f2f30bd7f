"""Generated images: the gallery's one query, stars, deletion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.models import Artifact, Image, ImageWeights, WeightsConcept
from backend.schemas import images as schemas
from backend.schemas.images import ImagePatch
from backend.services import owned, paging


def get(session: Session, owner_id: str, image_id: str) -> Image:
    """The owner's image. NotFound otherwise."""
    return owned.get(session, Image, owner_id, image_id)


def page(
    session: Session,
    owner_id: str,
    *,
    concept: str | None = None,
    weights: str | None = None,
    starred: bool | None = None,
    q: str | None = None,
    job: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> tuple[list[Image], str | None]:
    """Images newest first. ``q`` is found literally in the prompt, whatever the case of ASCII letters."""
    query = select(Image).where(Image.owner_id == owner_id)
    if concept is not None:
        by_concept = (
            select(ImageWeights.image_id)
            .join(WeightsConcept, WeightsConcept.weights_id == ImageWeights.weights_id)
            .where(WeightsConcept.concept_id == concept)
        )
        query = query.where(Image.id.in_(by_concept))
    if weights is not None:
        query = query.where(
            Image.id.in_(select(ImageWeights.image_id).where(ImageWeights.weights_id == weights))
        )
    if starred is not None:
        query = query.where(Image.starred.is_(starred))
    if job is not None:
        query = query.where(Image.job_id == job)
    if q:
        query = query.where(Image.prompt.ilike(paging.literal(q), escape="\\"))
    return paging.take(session, query, Image.id, limit, cursor)


def patch(session: Session, owner_id: str, image_id: str, body: ImagePatch) -> Image:
    """Star or unstar."""
    row = get(session, owner_id, image_id)
    row.starred = body.starred
    session.flush()
    return row


def delete(session: Session, owner_id: str, image_id: str) -> None:
    """Forget an image; its files are purged after the commit."""
    row = get(session, owner_id, image_id)
    keys = [row.storage_key, row.thumbnail_key]
    session.execute(sql_delete(ImageWeights).where(ImageWeights.image_id == image_id))
    session.execute(sql_delete(Artifact).where(Artifact.storage_key.in_(keys)))
    owned.forget(session, row)
    owned.purge(session, owner_id, keys)


def to_schema(session: Session, row: Image) -> schemas.Image:
    """The image with its whole recipe."""
    return to_schemas(session, [row])[0]


def to_schemas(session: Session, rows: Sequence[Image]) -> list[schemas.Image]:
    """Several images, with the concepts they show, in one query more."""
    shown: dict[str, list[str]] = {row.id: [] for row in rows}
    query = (
        select(ImageWeights.image_id, WeightsConcept.concept_id)
        .join(WeightsConcept, WeightsConcept.weights_id == ImageWeights.weights_id)
        .where(ImageWeights.image_id.in_(shown))
        .order_by(WeightsConcept.concept_id)
    )
    for image_id, concept_id in session.execute(query):
        if concept_id not in shown[image_id]:
            shown[image_id].append(concept_id)
    return [_one(row, shown[row.id]) for row in rows]


def _one(row: Image, concept_ids: list[str]) -> schemas.Image:
    url = f"/api/v1/images/{row.id}"
    fields: dict[str, Any] = {
        "id": row.id,
        "job": row.job_id,
        "index": row.index,
        "width": row.width,
        "height": row.height,
        "url": f"{url}/file",
        "thumbnail_url": f"{url}/thumbnail",
        "starred": row.starred,
        "concepts": concept_ids,
        "recipe": row.recipe,
        "created_at": row.created_at,
    }
    return schemas.Image.model_validate(fields)
