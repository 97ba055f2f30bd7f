"""Jobs that wait for other jobs (T2 of reliability 2.3): pictures of a concept that is still being taught.

A need is written together with the job that has it and names a job that was there before, so there are no cycles.
Where what is needed fails or is cancelled, ``jobs.transition`` fails its dependants in the same transaction; where it
succeeds, whoever finished it calls `settle` afterwards, and the maintenance loop does for who died in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session, aliased

from backend.errors import AppError
from backend.failpoints import fp
from backend.models import Job, JobNeed
from backend.schemas.jobs import TERMINAL
from backend.services import generations, jobs

_log = structlog.get_logger(__name__)
COMPLETED: dict[str, Callable[[Session, Job, list[Job]], dict[str, Any]]] = {
    "generate": generations.completed,
}
"""What of a job's row becomes known when its needs have succeeded, by its kind; nothing for others. AppError: why it
cannot be done after all."""
_BATCH = 200


def settle(session: Session, finished: str | None = None) -> int:
    """Blocked jobs whose needs have all ended go on: into the queue, or they fail with a sentence. How many.

    ``finished``: only those that wait for this job. The caller commits at once.
    """
    needed = aliased(Job)
    unmet = exists().where(
        JobNeed.job_id == Job.id, needed.id == JobNeed.needs_id, needed.state.not_in(TERMINAL)
    )
    ready = select(Job).where(Job.state == "blocked", ~unmet)
    if finished is not None:
        ready = ready.where(Job.id.in_(select(JobNeed.job_id).where(JobNeed.needs_id == finished)))
    ready = ready.order_by(Job.id).limit(_BATCH).with_for_update(skip_locked=True, of=Job)
    found = session.scalars(ready).all()
    for job in found:
        _go_on(session, job)
    if found:
        fp("unblock.before_commit")
    return len(found)


def _go_on(session: Session, job: Job) -> None:
    query = select(Job).join(JobNeed, JobNeed.needs_id == Job.id).where(JobNeed.job_id == job.id)
    needed = list(session.scalars(query.order_by(Job.id)))
    spoilt = [each for each in needed if each.state != "succeeded"]
    if spoilt:
        jobs.fail_blocked(session, job.id, spoilt[0])
        return
    try:
        columns = COMPLETED[job.kind](session, job, needed) if job.kind in COMPLETED else {}
    except (AppError, ValueError, LookupError) as error:
        if not isinstance(
            error, AppError
        ):  # of this job alone: others that wait must not wait for ever with it
            _log.exception("job_not_completed", job=job.id)
            error = AppError("What this job waited for is done, but it could not be joined with it.")
        told = {"code": error.code, "retryable": False, "message": error.detail}
        jobs.transition(session, job.id, "failed", expected=("blocked",), error=told)
        return
    session.execute(delete(JobNeed).where(JobNeed.job_id == job.id))
    if jobs.transition(session, job.id, "queued", expected=("blocked",), **columns):
        jobs.queue_hint(session, job.id, job.owner_id, job.queue, jobs.FIRST_RING_S)
