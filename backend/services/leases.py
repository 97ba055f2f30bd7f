"""What a supervisor does with jobs: claim, renew, report, give back. Every write names the fence of its attempt.

A write whose fence is stale changes no row and returns False: another attempt holds the job, and this one stops.
T3..T7 are the numbers of reliability 2.3.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from backend.failpoints import fp
from backend.models import Job, Worker, now
from backend.queue import Hint
from backend.schemas.executor import Unit
from backend.services import job_events, jobs
from backend.services.job_events import Event, note

RETRY_FIRST_S, RETRY_LONGEST_S = 5.0, 600.0
PICTURES_TOGETHER = 8
"""Pictures of different jobs that are claimed together; the executor draws as many at once as its device takes."""


TIMEOUT = {
    "code": "timeout",
    "retryable": False,
    "message": "It ran for longer than this studio lets a job run. Ask for fewer steps or pictures at once.",
}


@dataclass(frozen=True)
class Flags:
    """What was asked of a running job: by people, or by the reaper because its time is over."""

    cancel: bool
    finish: bool
    timed_out: bool = False


# ---- T3 claim


def claim(
    session: Session,
    worker_id: str,
    *,
    queues: Collection[str],
    kinds: Mapping[str, int],
    base_hashes: Collection[str],
) -> Job | None:
    """Take the best waiting job this worker can do, or None. The caller commits at once.

    ``kinds`` maps a kind to the newest ``spec_version`` understood; jobs of a later version stay queued. Best: highest
    priority, then the owner with fewest running jobs, then the owner served longest ago, then the oldest.
    Postgres skips rows that others are claiming; on SQLite the write transaction is already exclusive.
    """
    return _take(session, worker_id, _claimable(queues, kinds, base_hashes))


def claim_beside(
    session: Session,
    worker_id: str,
    first: Job,
    *,
    queues: Collection[str],
    kinds: Mapping[str, int],
    base_hashes: Collection[str],
) -> list[Job]:
    """Further waiting jobs whose pictures fill the call of the denoiser that ``first``, just claimed, begins: of the
    same ``batch_key``, in the same order, `PICTURES_TOGETHER` in all. They and ``first`` are marked as ``shared``.

    In the transaction of the claim; the caller commits at once.
    """
    room = PICTURES_TOGETHER - first.spec.get("num_images", 1)
    if first.batch_key is None or first.alone:
        return []
    found: list[Job] = []
    while room > 0:
        asked = Job.spec["num_images"].as_integer()
        fits = [Job.batch_key == first.batch_key, Job.kind == first.kind, Job.alone.is_(False), asked <= room]
        job = _take(session, worker_id, [*_claimable(queues, kinds, base_hashes), *fits], shared=True)
        if job is None:
            break
        room -= job.spec["num_images"]
        found.append(job)
    if found:
        first.shared = True
    return found


def _take(
    session: Session, worker_id: str, guards: list[ColumnElement[bool]], *, shared: bool = False
) -> Job | None:
    others = aliased(Job)
    of_owner = select(func.count()).where(others.owner_id == Job.owner_id, others.state == "running")
    served = select(func.max(others.started_at)).where(others.owner_id == Job.owner_id)
    best = (
        select(Job.id)
        .where(*guards)
        .order_by(
            Job.priority.desc(),
            of_owner.scalar_subquery(),
            served.scalar_subquery().asc().nulls_first(),
            Job.id,
        )
        .limit(1)
        .with_for_update(skip_locked=True, of=Job)
    )
    job_id = session.scalar(best)
    if job_id is None:
        return None
    fp("claim.before_commit")
    started = func.coalesce(Job.started_at, now())
    if not jobs.transition(
        session, job_id, "running", expected=("queued",), worker_id=worker_id, fence=Job.fence + 1,
        attempt=Job.attempt + 1, hb_seq=0, started_at=started, phase="loading", rate=None, eta_s=None, shared=shared,
    ):  # fmt: skip
        return None
    return session.get_one(Job, job_id, populate_existing=True)


def more_urgent(
    session: Session,
    than: int,
    *,
    queues: Collection[str],
    kinds: Mapping[str, int],
    base_hashes: Collection[str],
) -> bool:
    """Whether a job of a higher priority waits for this worker (P10: a picture need not wait for a training's end)."""
    waiting = select(Job.id).where(*_claimable(queues, kinds, base_hashes), Job.priority > than).limit(1)
    return session.scalar(waiting) is not None


def _claimable(
    queues: Collection[str], kinds: Mapping[str, int], base_hashes: Collection[str]
) -> list[ColumnElement[bool]]:
    understood = ((Job.kind == kind) & (Job.spec_version <= version) for kind, version in kinds.items())
    return [
        Job.state == "queued",
        Job.queue.in_(queues),
        Job.not_before <= now(),
        Job.base_hash.in_([*base_hashes, ""]),
        or_(*understood),
    ]


# ---- T4 heartbeat


def heartbeat(session: Session, worker_id: str, units: Iterable[Unit]) -> dict[str, Flags]:
    """Renew the leases that are still held; the answer lacks a job whose lease is lost."""
    held = [(unit.job, unit.fence) for unit in units]
    if not held:
        return {}
    rows = session.execute(
        update(Job)
        .where(Job.worker_id == worker_id, Job.state == "running", tuple_(Job.id, Job.fence).in_(held))
        .values(hb_seq=Job.hb_seq + 1)
        .returning(*_ASKED)
        .execution_options(synchronize_session=False)
    )
    return _flags(rows)


def flags(session: Session, units: Iterable[Unit]) -> dict[str, Flags]:
    """The same answer without renewing."""
    held = [(unit.job, unit.fence) for unit in units]
    return _flags(
        session.execute(select(*_ASKED).where(Job.state == "running", tuple_(Job.id, Job.fence).in_(held)))
    )


_ASKED = (Job.id, Job.cancel_requested_at, Job.finish_requested_at, Job.timed_out_at)


def _flags(rows: Iterable[Any]) -> dict[str, Flags]:
    return {
        row.id: Flags(
            *(
                asked is not None
                for asked in (row.cancel_requested_at, row.finish_requested_at, row.timed_out_at)
            )
        )
        for row in rows
    }


# ---- while it runs


def report(session: Session, unit: Unit, events: Sequence[Event], **columns: Any) -> bool:
    """Events and progress columns (``phase``, ``step``, ``total_steps``, ``rate``, ``eta_s``) of a running job."""
    return job_events.append(session, unit.job, events, fence=unit.fence, **columns)


def checkpointed(session: Session, unit: Unit, step: int) -> bool:
    """A checkpoint after ``step`` optimiser steps verifies on disk."""
    return report(session, unit, (), checkpoint_step=step)


# ---- T5..T7: how an attempt ends without a result (T8 is in publishing)


def _held(session: Session, unit: Unit) -> Job | None:
    """The job of this attempt, locked until the transaction ends; None for a stale fence."""
    return session.scalar(
        select(Job)
        .where(Job.id == unit.job, Job.fence == unit.fence, Job.state == "running")
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def _overruled(held: Job) -> tuple[str, dict[str, Any]] | None:
    """State and columns in which a job ends however its attempt ended: a person's cancel wins, then the deadline."""
    if held.cancel_requested_at is not None:
        return "cancelled", {}
    if held.timed_out_at is not None:
        return "failed", {"error": TIMEOUT}
    return None


def release(session: Session, unit: Unit, cause: Event) -> str | None:
    """T5: back to the queue at once, and the attempt does not count; the checkpoint stays. A cancel request and the
    deadline win.

    ``cause`` is a note that says why. Returns the new state, or None for a stale fence.
    """
    held = _held(session, unit)
    if held is None:
        return None
    if (over := _overruled(held)) is not None:
        jobs.transition(session, unit.job, over[0], expected=("running",), **over[1])
        return over[0]
    jobs.transition(
        session, unit.job, "queued", Job.fence == unit.fence, expected=("running",),
        events=[cause], note=cause.data["message"], attempt=Job.attempt - 1, not_before=now(), phase="waiting",
        rate=None, eta_s=None,
    )  # fmt: skip
    jobs.queue_hint(session, held.id, held.owner_id, held.queue, 0.0)
    return "queued"


def fail(
    session: Session,
    unit: Unit,
    error: dict[str, Any],
    max_attempts: int,
    report: dict[str, Any] | None = None,
) -> str | None:
    """T6 or T7: a retryable error goes back to the queue with backoff, until ``max_attempts``; any other ends the job.

    ``error`` holds ``code, retryable, message`` and a ``detail_id`` that the log knows; a job that ends keeps the
    ``report`` in its result. Returns the new state, None for a stale fence.
    """
    held = _held(session, unit)
    if held is None:
        return None
    told = [note(error["code"], error["message"])]
    if (over := _overruled(held)) is not None:
        jobs.transition(session, unit.job, over[0], expected=("running",), events=told, **over[1])
        return over[0]
    if error["retryable"] and held.attempt < max_attempts:
        delay = min(RETRY_FIRST_S * 2**held.attempt, RETRY_LONGEST_S) * random.uniform(0.8, 1.2)
        jobs.transition(
            session, unit.job, "queued", expected=("running",), events=told, phase="waiting", rate=None, eta_s=None,
            note=f"It is tried again in {delay:.0f} seconds.", not_before=now() + timedelta(seconds=delay),
        )  # fmt: skip
        jobs.queue_hint(session, held.id, held.owner_id, held.queue, delay)
        return "queued"
    result = {"report": report} if report is not None else None
    jobs.transition(
        session, unit.job, "failed", expected=("running",), events=told, error=error, result=result
    )
    return "failed"


def cancelled(session: Session, unit: Unit) -> str | None:
    """T10, T12: the computation has stopped as it was asked to, and there is nothing to keep.

    Returns the new state; None for a stale fence, and for a job that nobody asked to stop.
    """
    held = _held(session, unit)
    if held is None:
        return None
    over = _overruled(held) or (("cancelled", {}) if held.finish_requested_at is not None else None)
    if over is None:
        return None
    jobs.transition(session, unit.job, over[0], expected=("running",), **over[1])
    return over[0]


def time_out(session: Session, unit: Unit) -> bool:
    """T12: mark that the attempt has run for too long. Its supervisor stops it, and the job ends as failed, unless its
    result or a cancel comes first. False when it is marked already, or for a stale fence."""
    marked = session.execute(
        update(Job)
        .where(
            Job.id == unit.job, Job.fence == unit.fence, Job.state == "running", Job.timed_out_at.is_(None)
        )
        .values(timed_out_at=now())
        .returning(Job.queue)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if marked is None:
        return False
    session.info.setdefault("hints", []).append(Hint(unit.job, marked.queue))
    return True


def requeue_after_death(session: Session, unit: Unit, cause: Event, max_deaths: int) -> str | None:
    """T6 and T11 when the process that held the job died: resume, unless it dies again and again.

    Deaths are counted since the last checkpoint that verified. One that was shared with other jobs does not count,
    because nobody knows whose it was: the job runs alone from then on. A cancel request and the deadline win.
    Returns the new state, or None when the job is no longer this attempt's.
    """
    held = _held(session, unit)
    if held is None:
        return None
    progressed = (held.checkpoint_step or 0) > (held.deaths_checkpoint_step or 0)
    deaths = held.deaths if held.shared else 1 if progressed else held.deaths + 1
    columns: dict[str, Any] = {
        "deaths": deaths, "deaths_checkpoint_step": held.checkpoint_step, "fence": Job.fence + 1,
        "alone": held.alone or held.shared, "rate": None, "eta_s": None,
    }  # fmt: skip
    told = None
    if (over := _overruled(held)) is not None:
        to = over[0]
        columns |= over[1]
    elif deaths >= max_deaths:
        to = "failed"
        columns["error"] = {
            "code": "worker_lost",
            "retryable": True,
            "message": f"The process that ran this job died {deaths} times without getting further.",
        }
    else:
        to = "queued"
        wait_s = min(max(2.0 ** (deaths - 1) - 1, 0.0), 60.0)
        columns |= {"not_before": now() + timedelta(seconds=wait_s), "phase": "waiting"}
        told = "It goes on from its last checkpoint." if held.checkpoint_step else "It starts again."
        if held.shared:
            told = "It shared the process with other jobs; it starts again, alone."
    done = jobs.transition(
        session, unit.job, to, Job.fence == unit.fence, Job.hb_seq == held.hb_seq, expected=("running",),
        events=[cause], note=told, **columns,
    )  # fmt: skip
    if done and to == "queued":
        jobs.queue_hint(session, held.id, held.owner_id, held.queue, 0.0)
    return to if done else None


def abandoned(session: Session, slot: str, worker_id: str) -> list[Unit]:
    """Running jobs of earlier workers of this slot. Only who holds the slot's lock may call them dead."""
    rows = session.execute(
        select(Job.id, Job.fence)
        .join(Worker, Worker.id == Job.worker_id)
        .where(Job.state == "running", Worker.slot == slot, Worker.id != worker_id)
    )
    return [Unit(job=row.id, fence=row.fence) for row in rows]
