"""Concepts: what is taught. Deleting one hides it at once and leaves its files to the purge."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sqlalchemy import delete as sql_delete
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.errors import Conflict, Invalid
from backend.models import Artifact, Concept, ConceptWeights, ImageWeights, Photo, WeightsConcept, now
from backend.schemas import concepts as schemas
from backend.schemas.concepts import ConceptCreate, ConceptPatch, ConceptWeightsSummary
from backend.services import consent, dependants, images, jobs, mixing, owned, paging, photos

RESERVED_TOKENS = frozenset({"startoftext", "endoftext", "pad", "unk", "all", "none"})


def create(
    session: Session,
    owner_id: str,
    body: ConceptCreate,
    *,
    sample: str | None = None,
    wish: str | None = None,
) -> Concept:
    """A new concept. Invalid when the noun is missing or the token reserved, Conflict when the token is taken.

    Without a token it gets ``wish``, else a slug of the name, with a number behind it when that is taken.
    """
    _check_noun(body.kind, body.class_noun)
    token = body.token or _free_token(session, owner_id, wish or slug(body.name))
    _check_token(token)
    row = Concept(
        owner_id=owner_id,
        name=unicodedata.normalize("NFC", body.name),
        kind=body.kind,
        class_noun=unicodedata.normalize("NFC", body.class_noun),
        token=token,
        sample=sample,
        consent=None,
    )
    if body.consent is not None:
        consent.record(row, body.consent.basis)
    _save(session, row)
    return row


def get(session: Session, owner_id: str, concept_id: str) -> Concept:
    """The owner's concept. NotFound when it is missing, deleted or somebody else's."""
    return owned.get(session, Concept, owner_id, concept_id)


def page(
    session: Session, owner_id: str, limit: int = 50, cursor: str | None = None
) -> tuple[list[Concept], str | None]:
    """Concepts newest first, and the cursor of the next page."""
    query = select(Concept).where(Concept.owner_id == owner_id, Concept.deleted_at.is_(None))
    return paging.take(session, query, Concept.id, limit, cursor)


def patch(session: Session, owner_id: str, concept_id: str, body: ConceptPatch) -> Concept:
    """Change the fields that are present. Weights keep the token and noun they were taught with."""
    row = get(session, owner_id, concept_id)
    if body.name is not None:
        row.name = unicodedata.normalize("NFC", body.name)
    if body.class_noun is not None:
        _check_noun(row.kind, body.class_noun)
        row.class_noun = unicodedata.normalize("NFC", body.class_noun)
    if body.token is not None:
        _check_token(body.token)
        row.token = body.token
    if body.consent is not None:
        consent.record(row, body.consent.basis)
    _save(session, row)
    return row


def delete(session: Session, owner_id: str, concept_id: str, cascade: bool = False) -> None:
    """Hide the concept with its photos; with ``cascade`` also its weights, their images, and its live jobs.

    Conflict ``has-dependants`` with their list otherwise. Files are removed by the purge after the commit.
    """
    row = get(session, owner_id, concept_id)
    found = dependants.of_concept(session, row)
    if any(found.values()) and not cascade:
        raise Conflict(
            "Weights, pictures or jobs depend on this concept. Delete them too with cascade=true.",
            code="has-dependants",
            extra={"dependants": found},
        )
    for job_id in found["jobs"]:
        jobs.request_cancel(session, owner_id, job_id)
    for image_id in found["images"]:
        images.delete(session, owner_id, image_id)
    for weights in session.scalars(select(ConceptWeights).where(ConceptWeights.id.in_(found["weights"]))):
        weights.deleted_at = now()
        owned.purge(session, owner_id, [weights.storage_key, *_previews(session, weights.job_id)])
    for photo in session.scalars(select(Photo).where(Photo.concept_id == row.id)):
        owned.purge(session, owner_id, [photo.storage_key, photo.thumbnail_key])
    session.execute(sql_delete(Photo).where(Photo.concept_id == row.id))
    row.deleted_at = now()


def to_schema(session: Session, row: Concept) -> schemas.Concept:
    """The concept as the API shows it."""
    return to_schemas(session, [row])[0]


def to_schemas(session: Session, rows: Sequence[Concept]) -> list[schemas.Concept]:
    """Several concepts with their photos and weights, in three queries, and a fourth where some have no photos."""
    ids = [row.id for row in rows]
    shown: dict[str, list[Photo]] = {concept_id: [] for concept_id in ids}
    for photo in session.scalars(select(Photo).where(Photo.concept_id.in_(ids)).order_by(Photo.id)):
        shown[photo.concept_id].append(photo)
    taught: dict[str, list[ConceptWeightsSummary]] = {concept_id: [] for concept_id in ids}
    query = (
        select(WeightsConcept.concept_id, ConceptWeights)
        .join(ConceptWeights, ConceptWeights.id == WeightsConcept.weights_id)
        .where(WeightsConcept.concept_id.in_(ids), ConceptWeights.deleted_at.is_(None))
        .order_by(ConceptWeights.id.desc())
    )
    versions = session.execute(query).all()
    beside: dict[str, list[str]] = {weights.id: [] for _, weights in versions}
    links = select(WeightsConcept.weights_id, WeightsConcept.concept_id).order_by(WeightsConcept.token)
    for weights_id, concept_id in session.execute(links.where(WeightsConcept.weights_id.in_(beside))):
        beside[weights_id].append(concept_id)
    for concept_id, weights in versions:
        taught[concept_id].append(
            ConceptWeightsSummary(
                id=weights.id,
                method=weights.method,
                base=weights.base,
                job=weights.job_id,
                concepts=beside[weights.id],
                merge=weights.manifest.get("merge"),
                scale=mixing.own_scale(weights),
                size_bytes=weights.size_bytes,
                created_at=weights.created_at,
            )
        )
    found = {concept_id: photos.to_schema(own[0]).thumbnail_url for concept_id, own in shown.items() if own}
    pictures = _drawn(session, [concept_id for concept_id in ids if concept_id not in found]) | found
    return [
        schemas.Concept.model_validate(
            {
                "id": row.id,
                "name": row.name,
                "kind": row.kind,
                "class_noun": row.class_noun,
                "token": row.token,
                "consent": row.consent,
                "picture_url": pictures.get(row.id),
                "photos": [photos.to_schema(photo) for photo in shown[row.id]],
                "weights": taught[row.id],
                "created_at": row.created_at,
            }
        )
        for row in rows
    ]


def _drawn(session: Session, ids: Sequence[str]) -> dict[str, str]:
    """The newest picture that was drawn with what each concept has learned; those without one are left out."""
    newest = (
        select(WeightsConcept.concept_id, func.max(ImageWeights.image_id))
        .join(ImageWeights, ImageWeights.weights_id == WeightsConcept.weights_id)
        .where(WeightsConcept.concept_id.in_(ids))
        .group_by(WeightsConcept.concept_id)
    )
    rows = session.execute(newest) if ids else ()
    return {concept_id: f"/api/v1/images/{image_id}/thumbnail" for concept_id, image_id in rows}


def slug(name: str) -> str:
    """A token from a name: lower case ASCII letters, digits and dashes, starting with a letter."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return (words if words[:1].isalpha() else f"c-{words}".rstrip("-"))[:36].rstrip("-") or "concept"


def _free_token(session: Session, owner_id: str, wanted: str) -> str:
    taken = set(
        session.scalars(
            select(Concept.token).where(
                Concept.owner_id == owner_id, Concept.deleted_at.is_(None), Concept.token.startswith(wanted)
            )
        )
    ) | set(RESERVED_TOKENS)
    numbers = (f"{wanted}-{number}" for number in range(2, len(taken) + 3))
    return wanted if wanted not in taken else next(token for token in numbers if token not in taken)


def _check_noun(kind: str, class_noun: str) -> None:
    if kind == "subject" and not class_noun:
        raise Invalid.at("/class_noun", "Say what it is in a word the base model knows, such as dog.")
    if any(unicodedata.category(character)[0] == "C" or character in "<>@" for character in class_noun):
        raise Invalid.at("/class_noun", "Use plain words without <, > or @.")


def _check_token(token: str) -> None:
    if token in RESERVED_TOKENS:
        raise Invalid.at("/token", "This token is reserved. Choose another.", code="reserved-token")


def _save(session: Session, row: Concept) -> None:
    taken = select(func.count()).where(
        Concept.owner_id == row.owner_id,
        Concept.token == row.token,
        Concept.deleted_at.is_(None),
        Concept.id != (row.id or ""),
    )
    with session.no_autoflush:
        clash = session.scalar(taken)
    if clash:
        raise _token_taken()
    try:
        with session.begin_nested():
            session.add(row)
            session.flush()
    except IntegrityError:
        raise _token_taken() from None


def _token_taken() -> Conflict:
    return Conflict("Another concept has this token already. Choose another.", code="token-taken")


def _previews(session: Session, job_id: str | None) -> list[str]:
    query = select(Artifact).where(Artifact.job_id == job_id, Artifact.role == "preview")
    found = list(session.scalars(query))
    for artifact in found:
        session.delete(artifact)
    return [artifact.storage_key for artifact in found]
