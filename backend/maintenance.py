"""The loop that every web and supervisor process runs, one of them at a time in earnest: reaper, outbox, clean-up.

One row says who leads. Life is judged by counters that move, on this process's own monotonic clock, so neither clock
skew nor a jump of the wall clock expires anything (reliability 2.4).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import timedelta

import structlog
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from backend.db import Database
from backend.identifiers import new_id
from backend.models import IdempotencyKey, Job, Leader, Outbox, now
from backend.queue import Doorbell, Hint
from backend.rubbish import collect_rubbish
from backend.schemas.executor import Unit
from backend.services import jobs, leases, needs
from backend.services.job_events import note
from backend.settings import Settings
from backend.storage import Storage

_log = structlog.get_logger(__name__)
RING_AGAIN_S = 30.0
RUBBISH_EVERY_S = 900.0
_SWEEPS = 3
_BATCH = 200


class StandstillWatch:
    """Remembers since when each counter stands still."""

    @dataclass
    class _Seen:
        value: Hashable
        since: float
        looks: int

    def __init__(self) -> None:
        self._seen: dict[str, StandstillWatch._Seen] = {}

    def look(self, counters: dict[str, Hashable], at: float) -> None:
        """One sweep over all counters there are; forgotten are those that are gone."""
        kept = {}
        for name, value in counters.items():
            seen = self._seen.get(name)
            if seen is None or seen.value != value:
                seen = self._Seen(value, at, 0)
            seen.looks += 1
            kept[name] = seen
        self._seen = kept

    def still(self, name: str, for_s: float, at: float, looks: int = _SWEEPS) -> bool:
        """Whether the counter has not moved for so long, seen in so many sweeps."""
        seen = self._seen.get(name)
        return seen is not None and at - seen.since >= for_s and seen.looks > looks


class Maintenance:
    """``start`` begins a thread, ``stop`` ends it; ``sweep`` is one round."""

    def __init__(self, settings: Settings, database: Database, storage: Storage, doorbell: Doorbell) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._doorbell = doorbell
        self._owns_database = False
        self._me = new_id()
        self._leases = StandstillWatch()
        self._attempts = StandstillWatch()
        self._leader = StandstillWatch()
        self._rubbish_at = time.monotonic() + min(60.0, 6 * settings.sweep_s)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    @classmethod
    def of(cls, settings: Settings) -> Maintenance:
        """With a database connection and a storage of its own."""
        storage = Storage(settings.storage_dir, settings.low_water_bytes)
        made = cls(settings, Database(settings.database, pool_size=1), storage, Doorbell(settings))
        made._owns_database = True
        return made

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give the lead away and end."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        if self._owns_database:
            self._database.close()

    def _run(self) -> None:
        while not self._ended.wait(self._settings.sweep_s):
            try:
                self.sweep()
            except OperationalError as error:
                _log.warning("maintenance_paused", error=type(error.orig).__name__)
            except Exception:
                _log.exception("maintenance_failed")

    def sweep(self) -> bool:
        """One round; whether this process leads."""
        if not self._lead():
            return False
        self._reap()
        self._expire()
        with self._database.write() as session:
            needs.settle(session)
        self._doorbell.ring(session.info.get("hints", ()))
        self._pump()
        with self._database.write() as session:
            session.execute(delete(IdempotencyKey).where(IdempotencyKey.expires_at < now()))
        if time.monotonic() >= self._rubbish_at:
            self._rubbish_at = time.monotonic() + RUBBISH_EVERY_S
            collect_rubbish(self._settings, self._database, self._storage)
        return True

    # ---- leadership

    def _lead(self) -> bool:
        """Take, keep or wait for the lead. A leader whose counter stands still for a lease has lost it."""
        at = time.monotonic()
        try:
            with self._database.write() as session:
                row = session.get(Leader, "maintenance")
                if row is None:
                    session.execute(insert(Leader).values(name="maintenance", holder=self._me, hb_seq=1))
                    return True
                holder, count = row.holder, row.hb_seq
                self._leader.look({"leader": (holder, count)}, at)
                if holder != self._me and not self._leader.still(
                    "leader", self._settings.lease_s, at, looks=1
                ):
                    return False
                taken = session.execute(
                    update(Leader)
                    .where(Leader.name == "maintenance", Leader.holder == holder, Leader.hb_seq == count)
                    .values(holder=self._me, hb_seq=count + 1)
                    .returning(Leader.name)
                    .execution_options(synchronize_session=False)
                ).one_or_none()
                return taken is not None
        except IntegrityError:
            return False  # another process was first

    # ---- T11, T12

    def _reap(self) -> None:
        """Rescue running jobs whose heartbeat has stood still for a lease, and stop attempts that outlast their kind's
        time; both on this process's own clock, and seen in more than three sweeps."""
        at = time.monotonic()
        columns = (Job.id, Job.fence, Job.hb_seq, Job.kind, Job.timed_out_at)
        with self._database.read() as session:
            running = session.execute(select(*columns).where(Job.state == "running")).all()
        self._leases.look({row.id: (row.fence, row.hb_seq) for row in running}, at)
        self._attempts.look({row.id: row.fence for row in running}, at)
        for row in running:
            unit = Unit(job=row.id, fence=row.fence)
            if self._leases.still(row.id, self._settings.lease_s, at):
                self._rescue(unit)
            elif row.timed_out_at is None and self._attempts.still(
                row.id, self._settings.max_runtime_s(row.kind), at
            ):
                self._time_out(unit)

    def _rescue(self, unit: Unit) -> None:
        cause = note("worker_lost", "The worker that ran this job has not been heard of any more.")
        with self._database.write() as session:
            state = leases.requeue_after_death(session, unit, cause, self._settings.max_deaths)
        _log.warning("job_rescued", job=unit.job, state=state)
        self._doorbell.ring(session.info.get("hints", ()))

    def _time_out(self, unit: Unit) -> None:
        with self._database.write() as session:
            if leases.time_out(session, unit):
                _log.warning("job_timed_out", job=unit.job)
        self._doorbell.ring(session.info.get("hints", ()))

    def _expire(self) -> None:
        """Give up jobs that nobody began in time, by the database's clock: this process's own may be wrong."""
        error = {
            "code": "expired",
            "retryable": True,
            "message": "The job waited longer than it was meant to.",
        }
        clock = now() if self._database.sqlite else func.now()
        with self._database.write() as session:
            late = select(Job.id).where(Job.state == "queued", Job.expires_at < clock).limit(_BATCH)
            for job_id in session.scalars(late).all():
                jobs.transition(session, job_id, "failed", expected=("queued",), error=error)

    # ---- outbox

    def _pump(self) -> None:
        """Ring again for jobs that still wait; remove files that were given up."""
        hints: list[Hint] = []
        with self._database.write() as session:
            due = select(Outbox).where(Outbox.not_before <= now()).order_by(Outbox.not_before).limit(_BATCH)
            for row in session.scalars(due.with_for_update(skip_locked=True)).all():
                if row.topic == "purge":
                    self._purge(session, row)
                    continue
                job = session.get(Job, row.ref)
                if job is None or job.state != "queued":
                    session.delete(row)
                    continue
                hints.append(Hint(job.id, job.queue))
                row.tries += 1
                row.not_before = now() + timedelta(seconds=RING_AGAIN_S)
        self._doorbell.ring(hints)

    def _purge(self, session: Session, row: Outbox) -> None:
        try:
            self._storage.delete(row.ref)
        except OSError as error:
            _log.warning("purge_failed", error=type(error).__name__)
            row.tries += 1
            row.not_before = now() + timedelta(seconds=min(10.0 * 2**row.tries, 3600.0))
        else:
            session.delete(row)
