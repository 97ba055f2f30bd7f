"""Jobs: accept, show, cancel, finish, retry. The only writer of ``Job.state``, which only ``transition`` changes.

The states and who may change them stand in reliability 2.3; T1..T12 below are the numbers of that table. What a
supervisor does with a job it holds is in ``leases``; how results appear is in ``publishing``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.errors import Conflict, Invalid, NotFound, TooMany
from backend.models import Concept, Job, JobNeed, Outbox, now
from backend.queue import Hint
from backend.schemas.jobs import TERMINAL, Awaited, JobError, JobMetrics, JobProgress
from backend.schemas.jobs import Job as JobSchema
from backend.schemas.strict import Strict
from backend.schemas.version import VERSION
from backend.services import inputs, job_events
from backend.services.job_events import Event, events_after

__all__ = [
    "Event", "about", "enqueue", "events_after", "fail_blocked", "get", "page", "pinned", "queue_hint",
    "request_cancel", "request_finish", "retry", "to_schema", "transition",
]  # fmt: skip

PRIORITIES = {"generate": 10}
"""Somebody waits in front of a generation, so it runs before trainings that have not begun."""
QUEUED_AT_MOST = timedelta(days=7)
"""A job that nobody began for so long has expired; every return to the queue begins the time anew."""
FIRST_RING_S = 5.0
"""A hint still unanswered after this long is sent again by the outbox pump."""
_CHECKPOINTED = frozenset({"train"})
_CHECKPOINT_S = 60.0
_ID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


# ---- accepting


def enqueue(
    session: Session,
    *,
    owner_id: str,
    kind: str,
    queue: str,
    request: dict[str, Any],
    spec: Strict,
    base: str,
    base_hash: str,
    uniq_key: str | None = None,
    batch_key: str | None = None,
    needs: Sequence[str] = (),
    retry_of: str | None = None,
    max_queued_jobs: int = 200,
) -> Job:
    """T1: a queued job with its first event and its hint, in the caller's transaction; with ``needs``, which are the
    owner's jobs, a blocked one that waits until they have succeeded (``services.needs``).

    After the commit the caller rings ``session.info["hints"]`` with ``queue.Doorbell``; nothing is lost without it.
    Raises TooMany when the owner already has ``max_queued_jobs`` waiting, Conflict when a live job has ``uniq_key``,
    NotFound for a need that is not there.
    """
    return _accept(
        session,
        Job(
            owner_id=owner_id,
            kind=kind,
            queue=queue,
            priority=PRIORITIES.get(kind, 0),
            request=request,
            **pinned(spec),
            base=base,
            base_hash=base_hash,
            uniq_key=uniq_key,
            batch_key=batch_key,
            retry_of=retry_of,
        ),
        max_queued_jobs,
        needs,
    )


def pinned(spec: Strict) -> dict[str, Any]:
    """The columns of a row that hold a spec."""
    body = spec.model_dump(mode="json")
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return {"spec": body, "spec_version": int(body.get("spec_version", 1)), "spec_hash": digest}


def retry(session: Session, owner_id: str, job_id: str, max_queued_jobs: int = 200) -> Job:
    """A new job with the same spec, linked by ``retry_of``. Conflict unless the old one failed or was cancelled,
    when something it was pinned to is gone, and when what it waited for was not done either."""
    old = get(session, owner_id, job_id)
    if old.state not in ("failed", "cancelled"):
        raise Conflict("Only a job that failed or was cancelled can be tried again.", code="not-retryable")
    inputs.require(session, old)
    copied = ("owner_id", "kind", "queue", "priority", "request", "spec", "spec_version", "spec_hash", "base",
              "base_hash", "uniq_key", "batch_key")  # fmt: skip
    again = Job(retry_of=old.id, **{name: getattr(old, name) for name in copied})
    return _accept(session, again, max_queued_jobs, _still_needed(session, old))


def _still_needed(session: Session, old: Job) -> list[str]:
    """What the old job waited for in vain, as it was tried again since."""
    query = select(Job).join(JobNeed, JobNeed.needs_id == Job.id).where(JobNeed.job_id == old.id)
    found = []
    for needed in session.scalars(query).all():
        newest: Job | None = needed
        while newest is not None and newest.state in ("failed", "cancelled"):
            later = select(Job).where(Job.retry_of == newest.id).order_by(Job.id.desc()).limit(1)
            newest = session.scalar(later)
        if newest is None:
            raise Conflict(
                f"The {about(session, needed)} that this job waited for was not done. Try that again first.",
                code="dependency-failed",
            )
        found.append(newest.id)
    return found


def _accept(session: Session, job: Job, max_queued_jobs: int, needs: Sequence[str] = ()) -> Job:
    waiting = select(func.count()).where(Job.owner_id == job.owner_id, Job.state.in_(("queued", "blocked")))
    if (session.scalar(waiting) or 0) >= max_queued_jobs:
        raise TooMany(
            "Too many jobs are waiting already. Let some finish, or cancel some.",
            code="too-many-jobs",
            extra={"limit": max_queued_jobs},
        )
    # Locked, so that none of them ends unseen between this look and the commit.
    there = select(Job.id).where(Job.id.in_(needs), Job.owner_id == job.owner_id).with_for_update()
    if needs and set(session.scalars(there)) != set(needs):
        raise NotFound
    job.state, job.phase, job.app_version = "blocked" if needs else "queued", "waiting", VERSION
    job.not_before = now()
    job.expires_at = now() + QUEUED_AT_MOST
    try:
        with session.begin_nested():
            session.add(job)
            session.flush()
            session.add_all(JobNeed(job_id=job.id, needs_id=each, owner_id=job.owner_id) for each in needs)
            session.flush()
    except IntegrityError as error:
        if job.uniq_key is None:
            raise
        raise Conflict("The same work is waiting or running already.", code="already-running") from error
    job_events.append(session, job.id, [Event("state", {"state": job.state, "attempt": 0})])
    if not needs:
        queue_hint(session, job.id, job.owner_id, job.queue, FIRST_RING_S)
    session.refresh(job)
    return job


def queue_hint(session: Session, job_id: str, owner_id: str, queue: str, delay_s: float) -> None:
    """Leave an outbox row that rings after ``delay_s``, and tell the caller to ring once after the commit."""
    session.add(
        Outbox(owner_id=owner_id, topic="hint", ref=job_id, not_before=now() + timedelta(seconds=delay_s))
    )
    session.info.setdefault("hints", []).append(Hint(job_id, queue))


# ---- changing state


def transition(
    session: Session,
    job_id: str,
    to: str,
    *guards: ColumnElement[bool],
    expected: Sequence[str],
    events: Sequence[Event] = (),
    note: str | None = None,
    **columns: Any,
) -> bool:
    """One conditional UPDATE from an expected state, with its events; False when the guards no longer hold.

    ``columns`` are further values of the row. A terminal state adds ``finished_at`` and the ``done`` event.
    """
    ends = to in TERMINAL
    state: dict[str, Any] = {"state": to}
    written = [*events, Event("state", state)] + ([Event("done", {"state": to})] if ends else [])
    values: dict[str, Any] = {"state": to, "last_event": Job.last_event + len(written)} | columns
    if to != "running":
        values["worker_id"] = None
    if to == "queued":
        values["expires_at"] = now() + QUEUED_AT_MOST
    if ends:
        values |= {"finished_at": now(), "eta_s": None}
    row = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.state.in_(expected), *guards)
        .values(values)
        .returning(Job.last_event, Job.owner_id, Job.attempt)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        return False
    state["attempt"] = row.attempt
    if note is not None:
        state["note"] = note
    job_events.write(
        session,
        job_id,
        owner_id=row.owner_id,
        attempt=row.attempt,
        last=row.last_event,
        events=written,
    )
    if to in ("failed", "cancelled"):
        _fail_dependants(session, job_id)
    return True


def _fail_dependants(session: Session, job_id: str) -> None:
    """T2: what waited for a job that will not succeed ends with it, and what waited for that."""
    waiting = select(Job.id).join(JobNeed, JobNeed.job_id == Job.id)
    waiting = waiting.where(JobNeed.needs_id == job_id, Job.state == "blocked")
    for dependant in session.scalars(waiting).all():
        fail_blocked(session, dependant, session.get_one(Job, job_id, populate_existing=True))


def fail_blocked(session: Session, job_id: str, needed: Job) -> None:
    """T2: the job fails because ``needed`` has ended without success."""
    ended = "was cancelled" if needed.state == "cancelled" else "failed"
    message = f"The {about(session, needed)} that this job waited for {ended}."
    error = {"code": "dependency", "retryable": True, "message": message}
    transition(session, job_id, "failed", expected=("blocked",), error=error)


def request_cancel(session: Session, owner_id: str, job_id: str) -> Job:
    """T9 or T10: a waiting job is cancelled here and now; a running one is marked, and nothing of it is published
    afterwards. Idempotent. Conflict when it has already succeeded or failed."""
    job = get(session, owner_id, job_id)
    if job.state in ("queued", "blocked"):
        transition(session, job_id, "cancelled", expected=("queued", "blocked"), cancel_requested_at=now())
    session.refresh(job)
    if job.state == "running" and job.cancel_requested_at is None:
        session.execute(
            update(Job)
            .where(Job.id == job_id, Job.state == "running", Job.cancel_requested_at.is_(None))
            .values(cancel_requested_at=now())
            .execution_options(synchronize_session=False)
        )
        session.info.setdefault("hints", []).append(Hint(job.id, job.queue))
        session.refresh(job)
    if job.state in ("succeeded", "failed"):
        raise Conflict("This job has ended already.", code="job-ended")
    return job


def request_finish(session: Session, owner_id: str, job_id: str) -> Job:
    """Ask a running training to stop now and keep what it has learned. Idempotent; Conflict for any other job."""
    job = get(session, owner_id, job_id)
    marked = session.execute(
        update(Job)
        .where(
            Job.id == job_id,
            Job.kind == "train",
            Job.state == "running",
            Job.cancel_requested_at.is_(None),
        )
        .values(finish_requested_at=func.coalesce(Job.finish_requested_at, now()))
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if marked is None:
        raise Conflict("Only a running training can be finished early.", code="not-running")
    session.info.setdefault("hints", []).append(Hint(job.id, job.queue))
    session.refresh(job)
    return job


# ---- reading


def get(session: Session, owner_id: str, job_id: str) -> Job:
    """The owner's job. NotFound when it is missing or somebody else's."""
    job = session.scalar(select(Job).where(Job.id == job_id, Job.owner_id == owner_id))
    if job is None:
        raise NotFound
    return job


def page(
    session: Session,
    owner_id: str,
    *,
    state: str | None = None,
    kind: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> tuple[list[Job], str | None]:
    """Jobs newest first, and the cursor of the next page. Invalid for a cursor that is not one of ours."""
    if cursor is not None and not _ID.fullmatch(cursor):
        raise Invalid.at("/cursor", "This is not a cursor that a list returned.")
    query = select(Job).where(Job.owner_id == owner_id)
    if state is not None:
        query = query.where(Job.state == state)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if cursor is not None:
        query = query.where(Job.id < cursor)
    rows = list(session.scalars(query.order_by(Job.id.desc()).limit(limit + 1)))
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


def about(session: Session, job: Job) -> str:
    """What somebody calls a job that another waits for: ``training of Stark``."""
    ids = (
        [concept["id"] for concept in job.spec.get("concepts", ())] if job.kind in ("train", "merge") else []
    )
    names = session.scalars(select(Concept.name).where(Concept.id.in_(ids)).order_by(Concept.id)).all()
    noun = {"train": "training", "generate": "pictures", "merge": "merge"}.get(job.kind, "job")
    return f"{noun} of {' and '.join(names)}" if names else noun


def _waits_for(session: Session, job: Job) -> list[Awaited]:
    needed = select(Job).join(JobNeed, JobNeed.needs_id == Job.id).where(JobNeed.job_id == job.id)
    found = session.scalars(needed.order_by(Job.id)).all() if job.state == "blocked" else []
    return [Awaited(job=each.id, what=about(session, each)) for each in found]


def to_schema(session: Session, job: Job) -> JobSchema:
    """The job as the API shows it."""
    checkpoint_s = job.metrics.get("checkpoint_s", _CHECKPOINT_S)
    url = f"/api/v1/jobs/{job.id}"
    urls = {"self": url, "events": f"{url}/events", "cancel": f"{url}/cancel", "page": f"/jobs/{job.id}"}
    if job.kind == "train" and job.state == "running":
        urls["finish"] = f"{url}/finish"
    if job.state in ("failed", "cancelled"):
        urls["retry"] = f"{url}/retry"
    error = job.error and {name: job.error[name] for name in JobError.model_fields}
    return JobSchema.model_validate(
        {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "progress": JobProgress(
                phase=job.phase, step=job.step, total=job.total_steps, rate=job.rate, eta_s=job.eta_s
            ),
            "queue_position": _position(session, job) if job.state == "queued" else None,
            "waits_for": _waits_for(session, job),
            "attempt": job.attempt,
            "max_lost_seconds": checkpoint_s if job.kind in _CHECKPOINTED else None,
            "last_checkpoint_step": job.checkpoint_step,
            "cancel_requested": job.cancel_requested_at is not None,
            "metrics": JobMetrics(**{name: job.metrics.get(name) for name in JobMetrics.model_fields}),
            "request": job.request,
            "result": job.result,
            "error": error,
            "retry_of": job.retry_of,
            "urls": urls,
            "created_at": job.created_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
        }
    )


def _position(session: Session, job: Job) -> int:
    ahead = or_(Job.priority > job.priority, (Job.priority == job.priority) & (Job.id < job.id))
    return session.scalar(select(func.count()).where(Job.state == "queued", ahead)) or 0
