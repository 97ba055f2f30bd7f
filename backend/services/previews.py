"""Preview pictures of a training, numbered in the order in which they were published."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import NotFound
from backend.models import Artifact


def get(session: Session, owner_id: str, job_id: str, number: str) -> Artifact:
    """The preview with that number, from 0. NotFound otherwise."""
    if not number.isascii() or not number.isdigit() or len(number) > 6:
        raise NotFound
    row = session.scalar(
        select(Artifact)
        .where(Artifact.job_id == job_id, Artifact.owner_id == owner_id, Artifact.role == "preview")
        .order_by(Artifact.id)
        .offset(int(number))
        .limit(1)
    )
    if row is None:
        raise NotFound
    return row
