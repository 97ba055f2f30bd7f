"""Workers and the base models they serve: rows that supervisors write and the web process reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from backend.models import BaseModel, Worker, now
from backend.schemas.bases import BaseDescription
from backend.schemas.version import VERSION


def hello(session: Session, slot: str, device: str) -> str:
    """A new row for a supervisor that holds the slot; earlier rows of the slot are marked stopped. Returns its id."""
    session.execute(update(Worker).where(Worker.slot == slot).values(state="stopped", bases={}))
    worker = Worker(slot=slot, device=device, state="starting", app_version=VERSION)
    session.add(worker)
    session.flush()
    return worker.id


def beat(session: Session, worker_id: str, state: str, **columns: Any) -> None:
    """The supervisor lives: ``starting`` (executor warming up), ``ready``, ``busy``, ``defunct`` or ``stopped``."""
    session.execute(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(hb_seq=Worker.hb_seq + 1, seen_at=now(), state=state, **columns)
        .execution_options(synchronize_session=False)
    )


def register_bases(session: Session, worker_id: str, bases: Sequence[BaseDescription]) -> None:
    """Say that this worker serves these base models."""
    for base in bases:
        row = session.get(BaseModel, base.id)
        if row is None:
            row = BaseModel(id=base.id)
            session.add(row)
        row.hash, row.tokenizer_json, row.updated_at = base.hash, base.tokenizer_json, now()
        row.description = base.model_dump(mode="json", exclude={"tokenizer_json"})
    session.execute(
        update(Worker).where(Worker.id == worker_id).values(bases={base.id: base.hash for base in bases})
    )


def goodbye(session: Session, worker_id: str) -> None:
    """The supervisor ends in order."""
    beat(session, worker_id, "stopped", bases={})
