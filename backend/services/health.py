"""Whether the studio can work: database, storage, and a live supervisor; and the numbers behind it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from backend.db import Database
from backend.identifiers import new_id
from backend.models import LOCAL_OWNER, Job, Outbox, Worker, now
from backend.storage import Storage

PROBE_BYTES = 20_000
"""Several pages of a database."""
_WORKING = ("starting", "ready", "busy")


@dataclass(frozen=True)
class Readiness:
    """``reasons`` are empty when the studio is ready."""

    reasons: dict[str, str]

    @property
    def ready(self) -> bool:
        return not self.reasons


def readiness(database: Database, storage: Storage, lease_s: float) -> Readiness:
    """Ask each part once. Never raises."""
    reasons: dict[str, str] = {}
    try:
        with database.read() as session:
            session.execute(text("SELECT 1"))
            if not live_workers(session, lease_s):
                reasons["workers"] = "no supervisor has reported within its lease"
        if database.doubtful and not _takes_writes(database):
            reasons["database"] = "the database cannot be written"
    except SQLAlchemyError:
        reasons["database"] = "the database does not answer"
    if not storage.writable():
        reasons["storage"] = "the storage cannot be written"
    return Readiness(reasons)


def _takes_writes(database: Database) -> bool:
    """Whether a write that needs room succeeds. Asked only after one has failed, since it costs a commit."""
    probe = Outbox(id=new_id(), owner_id=LOCAL_OWNER, topic="probe", ref="x" * PROBE_BYTES)
    try:
        with database.write() as session:
            session.add(probe)
            session.flush()
            session.delete(probe)
    except SQLAlchemyError:
        return False
    database.doubtful = False
    return True


def live_workers(session: Session, lease_s: float) -> list[Worker]:
    """Supervisors that were seen within their lease and have a usable slot."""
    seen = Worker.seen_at > now() - timedelta(seconds=lease_s)
    return list(session.scalars(select(Worker).where(seen, Worker.state.in_(_WORKING)).order_by(Worker.id)))


def jobs_by_state(session: Session) -> list[tuple[str, str, int]]:
    """(kind, state, how many), over all owners."""
    query = select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state)
    return [(kind, state, count) for kind, state, count in session.execute(query)]


def workers_by_state(session: Session, lease_s: float) -> dict[str, int]:
    """How many live supervisors are in each state."""
    return dict(Counter(worker.state for worker in live_workers(session, lease_s)))


def queue_age_s(session: Session) -> float:
    """Seconds since the oldest waiting job was accepted; 0 when none waits."""
    oldest = session.scalar(select(func.min(Job.created_at)).where(Job.state == "queued"))
    return max(0.0, (now() - oldest).total_seconds()) if oldest else 0.0
