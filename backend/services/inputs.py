"""What a job's spec was pinned to, and whether the studio still has it: a retry must not wait for what is gone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from backend.errors import Conflict
from backend.models import BaseModel, Concept, ConceptWeights, Job, Photo

_WORDS = {"concepts": "a concept", "photos": "photos", "weights": "weights"}


def require(session: Session, job: Job) -> None:
    """Raises Conflict ``inputs-gone``, with the ids in ``gone``, when a concept, photo or weights of the job were
    deleted; Conflict ``base-changed`` when the base model has other tensors by now, so that nobody would claim it.
    """
    gone = {name: ids for name, ids in _gone(session, job).items() if ids}
    if gone:
        words = " and ".join(_WORDS[name] for name in gone)
        raise Conflict(
            f"This job used {words} that have been deleted since, so it cannot be tried again. Start a new one.",
            code="inputs-gone",
            extra={"gone": gone},
        )
    digest = session.scalar(select(BaseModel.hash).where(BaseModel.id == job.base))
    if digest is not None and digest != job.base_hash:
        raise Conflict(
            "The base model has changed since this job was accepted. Start a new one.", code="base-changed"
        )


def _gone(session: Session, job: Job) -> dict[str, list[str]]:
    spec: dict[str, Any] = job.spec
    compared = (spec.get("check") or {}).get("concepts", ())
    taught = [*spec.get("concepts", ()), *compared]
    concepts = [concept["id"] for concept in taught]
    pinned = [photo["id"] for concept in taught for photo in concept["photos"]]
    weights = [used["file"]["id"] for used in spec.get("weights", ())]
    return {
        "concepts": _missing(session, job, concepts, Concept.id, Concept.deleted_at.is_(None)),
        "photos": _missing(session, job, pinned, Photo.id),
        "weights": _missing(session, job, weights, ConceptWeights.id, ConceptWeights.deleted_at.is_(None)),
    }


def _missing(
    session: Session, job: Job, ids: Collection[str], column: InstrumentedAttribute[str], *alive: Any
) -> list[str]:
    owner = column.class_.owner_id
    found = set(session.scalars(select(column).where(column.in_(ids), owner == job.owner_id, *alive)))
    return [each for each in ids if each not in found]
