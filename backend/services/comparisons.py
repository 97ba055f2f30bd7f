"""Pictures from before and after weights are made smaller: who compares them, and what is known of them already."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.models import Concept, ConceptWeights, Job, WeightsConcept
from backend.schemas.bases import JudgesDescription
from backend.schemas.calibration import Calibration
from backend.schemas.trainings import PinnedConcept, TrainSpec
from backend.schemas.weights import WeightsManifest
from backend.services import bases, photos


def concepts(session: Session, row: ConceptWeights) -> list[PinnedConcept]:
    """What the weights teach, under the words that they have for it, with their photos."""
    links = session.execute(
        select(WeightsConcept.token, Concept)
        .join(Concept, Concept.id == WeightsConcept.concept_id)
        .where(WeightsConcept.weights_id == row.id, Concept.deleted_at.is_(None))
        .order_by(WeightsConcept.token)
    )
    return [
        PinnedConcept.model_validate(
            {
                "id": each.id,
                "token": token,
                "class_noun": each.class_noun,
                "kind": each.kind,
                "photos": photos.pinned(photos.of_concept(session, each.id)),
            }
        )
        for token, each in links
    ]


def judges(
    session: Session, row: ConceptWeights, taught: Sequence[PinnedConcept]
) -> JudgesDescription | None:
    """Who can compare; nobody where the base model has no judges or is another by now, where a concept has too few
    photos or no class to be compared with, and where the class itself is what was taught.
    """
    base = next((each for each in bases.list_all(session) if each.id == row.base), None)
    tokens = WeightsManifest.model_validate(row.manifest).tokens
    told = taught and all(
        len(each.photos) >= photos.MIN_COMPARED and (each.class_noun or each.kind == "style")
        for each in taught
    )
    if base is None or base.hash != row.base_hash or not told or not all(each.vectors for each in tokens):
        return None
    return base.judges


def known(
    session: Session, row: ConceptWeights, judges: JudgesDescription, taught: Sequence[PinnedConcept]
) -> Calibration | None:
    """What these judges saw when the weights were calibrated; None unless concepts and photos are still the same."""
    told = row.report.get("calibration")
    job = session.get(Job, row.job_id) if told and row.job_id else None
    if job is None or job.kind != "train":
        return None
    found = Calibration.model_validate(told)
    learned = TrainSpec.model_validate(job.spec).concepts
    same = sorted(learned, key=lambda each: each.token) == list(taught)
    return found if same and found.judges.hash == judges.hash else None
