"""What happened to a job: rows numbered without gaps per job, which the event stream replays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, insert, or_, select, update
from sqlalchemy.orm import Session

from backend.models import Job, JobEvent, now
from backend.schemas.jobs import EventType


class Event(NamedTuple):
    """An event to be written; ``data`` as ``schemas.jobs.EventType`` describes."""

    type: EventType
    data: dict[str, Any]


def note(code: str, message: str) -> Event:
    """A sentence about what happened, shown on the job's page."""
    return Event("note", {"code": code, "message": message})


def append(
    session: Session,
    job_id: str,
    events: Sequence[Event],
    *guards: ColumnElement[bool],
    fence: int | None = None,
    **columns: Any,
) -> bool:
    """Write events, and ``columns`` of the job, in one step. With a fence only while that attempt holds the job.

    Returns whether the job was there (and still held, and ``guards`` true).
    """
    guard = [Job.id == job_id, *guards]
    if fence is not None:
        guard += [Job.fence == fence, Job.state == "running"]
    row = session.execute(
        update(Job)
        .where(*guard)
        .values(last_event=Job.last_event + len(events), **columns)
        .returning(Job.last_event, Job.owner_id, Job.attempt)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        return False
    write(
        session,
        job_id,
        owner_id=row.owner_id,
        attempt=row.attempt,
        last=row.last_event,
        events=events,
    )
    return True


def write(
    session: Session, job_id: str, *, owner_id: str, attempt: int, last: int, events: Sequence[Event]
) -> None:
    """Insert events whose numbers, ending with ``last``, are already reserved in the job's row."""
    first, at = last - len(events) + 1, now()
    if events:
        session.execute(
            insert(JobEvent),
            [
                {
                    "job_id": job_id,
                    "seq": first + offset,
                    "owner_id": owner_id,
                    "attempt": attempt,
                    "type": event.type,
                    "data": event.data,
                    "created_at": at,
                }
                for offset, event in enumerate(events)
            ],
        )


def events_after(
    session: Session, owner_id: str, job_ids: Collection[str], after: Mapping[str, int], limit: int = 200
) -> list[JobEvent]:
    """Events of the owner's jobs that follow ``after[job]`` (0 where absent), in order per job, at most ``limit``."""
    if not job_ids:
        return []
    newer = or_(*(and_(JobEvent.job_id == job, JobEvent.seq > after.get(job, 0)) for job in job_ids))
    query = select(JobEvent).where(JobEvent.owner_id == owner_id, newer)
    return list(session.scalars(query.order_by(JobEvent.job_id, JobEvent.seq).limit(limit)))
