"""The one way to a row by its id: it always asks for the owner, so a foreign row is as missing as a deleted one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import NotFound
from backend.models import Base, Concept, ConceptWeights, Evaluation, Image, Outbox

Row = TypeVar("Row", Concept, ConceptWeights, Evaluation, Image)


def get(session: Session, table: type[Row], owner_id: str, item_id: str) -> Row:
    """The owner's row. NotFound when it is missing, deleted or somebody else's."""
    query = select(table).where(table.id == item_id, table.owner_id == owner_id)
    if hasattr(table, "deleted_at"):
        query = query.where(table.deleted_at.is_(None))
    row = session.scalar(query)
    if row is None:
        raise NotFound
    return row


def forget(session: Session, row: Base) -> None:
    """Delete a row that nothing refers to."""
    session.delete(row)
    session.flush()


def purge(session: Session, owner_id: str, storage_keys: Sequence[str]) -> None:
    """Have files removed after the commit; the maintenance loop does it."""
    session.add_all(Outbox(owner_id=owner_id, topic="purge", ref=key) for key in storage_keys)
    session.flush()
