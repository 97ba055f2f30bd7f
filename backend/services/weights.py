"""Weights: list, show, hand out, delete. They are written by ``services.publishing`` and never changed."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import Conflict, NotFound
from backend.models import ConceptWeights, WeightsConcept, now
from backend.schemas import weights as schemas
from backend.schemas.weights import WeightsAnalysis, WeightsManifest
from backend.services import dependants, owned, paging


def get(session: Session, owner_id: str, weights_id: str) -> ConceptWeights:
    """The owner's weights. NotFound otherwise."""
    return owned.get(session, ConceptWeights, owner_id, weights_id)


def page(
    session: Session, owner_id: str, limit: int = 50, cursor: str | None = None, concept: str | None = None
) -> tuple[list[ConceptWeights], str | None]:
    """Weights newest first, and the cursor of the next page."""
    query = select(ConceptWeights).where(
        ConceptWeights.owner_id == owner_id, ConceptWeights.deleted_at.is_(None)
    )
    if concept is not None:
        of_concept = select(WeightsConcept.weights_id).where(WeightsConcept.concept_id == concept)
        query = query.where(ConceptWeights.id.in_(of_concept))
    return paging.take(session, query, ConceptWeights.id, limit, cursor)


def analysis(row: ConceptWeights) -> WeightsAnalysis:
    """The change per layer. NotFound when these weights came without one."""
    if row.analysis is None:
        raise NotFound("These weights came without an analysis.")
    return WeightsAnalysis.model_validate(row.analysis)


def file_name(session: Session, row: ConceptWeights) -> str:
    """A speaking name: tokens, base, method, version among the weights of the same concept."""
    links = session.scalars(
        select(WeightsConcept).where(WeightsConcept.weights_id == row.id).order_by(WeightsConcept.token)
    ).all()
    tokens = "-".join(link.token for link in links) or "concept"
    earlier = select(WeightsConcept.weights_id).where(
        WeightsConcept.concept_id == (links[0].concept_id if links else ""),
        WeightsConcept.weights_id <= row.id,
    )
    version = len(session.scalars(earlier).all()) or 1
    return f"{tokens[:80]}-{row.base}-{row.method}-v{version}.safetensors"


def delete(session: Session, owner_id: str, weights_id: str) -> None:
    """Hide the weights and purge their file; images drawn with them stay. Conflict while a job uses them."""
    row = get(session, owner_id, weights_id)
    if any(dependants.uses(job, None, [row.id]) for job in dependants.live_jobs(session, owner_id)):
        raise Conflict("A job uses these weights now. Wait for it, or cancel it.", code="in-use")
    row.deleted_at = now()
    owned.purge(session, owner_id, [row.storage_key])


def to_schema(session: Session, row: ConceptWeights) -> schemas.Weights:
    """The weights as the API shows them."""
    return to_schemas(session, [row])[0]


def to_schemas(session: Session, rows: Sequence[ConceptWeights]) -> list[schemas.Weights]:
    """Several weights, with what they teach, in one query more."""
    taught: dict[str, list[str]] = {row.id: [] for row in rows}
    links = select(WeightsConcept).where(WeightsConcept.weights_id.in_(taught)).order_by(WeightsConcept.token)
    for link in session.scalars(links):
        taught[link.weights_id].append(link.concept_id)
    return [
        schemas.Weights(
            id=row.id,
            concepts=taught[row.id],
            manifest=WeightsManifest.model_validate(row.manifest),
            size_bytes=row.size_bytes,
            sha256=row.sha256,
            parents=list(row.parents),
            report=row.report,
            job=row.job_id,
            file_url=f"/api/v1/weights/{row.id}/file",
            created_at=row.created_at,
        )
        for row in rows
    ]
