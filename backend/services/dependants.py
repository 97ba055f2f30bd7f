"""What depends on what: the live jobs, weights and images that stand in the way of a deletion."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.models import Concept, ConceptWeights, ImageWeights, Job, WeightsConcept

_LIVE = ("blocked", "queued", "running")


def of_concept(session: Session, row: Concept) -> dict[str, list[str]]:
    """Ids of what would go with the concept: weights, their images, live jobs that use it or them."""
    taught = (
        select(ConceptWeights.id)
        .join(WeightsConcept, WeightsConcept.weights_id == ConceptWeights.id)
        .where(WeightsConcept.concept_id == row.id, ConceptWeights.deleted_at.is_(None))
    )
    weights = list(session.scalars(taught))
    drawn = select(ImageWeights.image_id).where(ImageWeights.weights_id.in_(weights)).distinct()
    return {
        "weights": weights,
        "images": list(session.scalars(drawn)),
        "jobs": [job.id for job in live_jobs(session, row.owner_id) if uses(job, row.id, weights)],
    }


def live_jobs(session: Session, owner_id: str) -> Sequence[Job]:
    """Jobs of the owner that have not ended."""
    return session.scalars(select(Job).where(Job.owner_id == owner_id, Job.state.in_(_LIVE))).all()


def training_on(session: Session, row: Concept) -> bool:
    """Whether a training that has not ended uses the concept's photos."""
    return any(job.kind == "train" and uses(job, row.id, ()) for job in live_jobs(session, row.owner_id))


def uses(job: Job, concept_id: str | None, weights: Collection[str]) -> bool:
    """Whether the job's spec pins the concept or one of the weights."""
    spec: dict[str, Any] = job.spec
    pinned = {concept["id"] for concept in spec.get("concepts", ())}
    used = {item["file"]["id"] for item in spec.get("weights", ())}
    return concept_id in pinned or not used.isdisjoint(weights)
