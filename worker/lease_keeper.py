"""What the supervisor owes running jobs: renew their leases, pass on what people ask, and end what does not end.

The ladder for a job that shall stop: a message, honoured at the next step; SIGTERM after ten seconds; SIGKILL after
fifteen. A step that never returns is found by its silence.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

import structlog
from sqlalchemy.exc import OperationalError

from backend.db import Database
from backend.schemas.executor import CancelJob, FinishJob, ReleaseJob
from backend.services import leases
from backend.services.job_events import Event
from backend.services.leases import Flags
from backend.settings import Settings
from worker.attempt import Attempt
from worker.executor_process import ExecutorProcess
from worker.pipe_run import boot_clock

_log = structlog.get_logger(__name__)
FLAGS_S = 1.0
TERMINATE_S, KILL_S = 10.0, 15.0
RELEASE_KILL_S = 25.0
SILENCE_S, SILENCE_FACTOR, LONGEST_SILENCE_S = 60.0, 10.0, 1800.0


class LeaseKeeper:
    """``tend`` is called every turn while jobs are held."""

    def __init__(self, database: Database, executor: ExecutorProcess, settings: Settings) -> None:
        self._database = database
        self._executor = executor
        self._settings = settings
        self._renew_at = 0.0
        self._look_at = 0.0

    def look_now(self) -> None:
        """Somebody rang: perhaps about a cancel."""
        self._look_at = 0.0

    def tend(self, attempts: Sequence[Attempt], worker_id: str) -> list[Attempt]:
        """Renew, look, escalate. Returns whose leases were renewed. Never raises for a database that is away."""
        renewed: list[Attempt] = []
        try:
            renewed = self._renew([attempt for attempt in attempts if not attempt.lost], worker_id)
        except OperationalError as error:
            _log.warning("heartbeat_failed", jobs=len(attempts), error=type(error.orig).__name__)
            self._renew_at = time.monotonic() + min(1.0, self._settings.heartbeat_s)
        for attempt in attempts:
            if boot_clock() - attempt.renewed_at > self._settings.lease_s * 2 / 3:
                self.release(attempt)
            self._escalate(attempt)
        return renewed

    def release(self, attempt: Attempt, cause: Event | None = None) -> None:
        """Ask for a checkpoint and the end of the attempt. ``cause``: a note for the job's page."""
        if attempt.released_at is None and attempt.cancelled_at is None:
            attempt.release_cause = cause
            attempt.released_at = time.monotonic()
            self._executor.send(ReleaseJob(job=attempt.unit.job, fence=attempt.unit.fence))

    def _renew(self, attempts: Sequence[Attempt], worker_id: str) -> list[Attempt]:
        at = time.monotonic()
        if not attempts or at < min(self._renew_at, self._look_at):
            return []
        units = [attempt.unit for attempt in attempts]
        renews = at >= self._renew_at
        if renews:
            self._renew_at = at + self._settings.heartbeat_s
            with self._database.write() as session:
                found = leases.heartbeat(session, worker_id, units)
        else:
            with self._database.read() as session:
                found = leases.flags(session, units)
        self._look_at = at + FLAGS_S
        held = [attempt for attempt in attempts if attempt.unit.job in found]
        if renews:
            for attempt in held:
                attempt.renewed_at = boot_clock()
        for attempt in attempts:
            self._heed(attempt, found.get(attempt.unit.job))
        return held if renews else []

    def _heed(self, attempt: Attempt, asked: Flags | None) -> None:
        if asked is None:
            _log.warning("lease_lost", job=attempt.unit.job, fence=attempt.unit.fence)
            attempt.lost = True
            self._cancel(attempt)
        elif asked.cancel or asked.timed_out:
            self._cancel(attempt)
        elif asked.finish and not attempt.finish_sent:
            attempt.finish_sent = True
            self._executor.send(FinishJob(job=attempt.unit.job, fence=attempt.unit.fence))

    def _cancel(self, attempt: Attempt) -> None:
        if attempt.cancelled_at is None:
            attempt.cancelled_at = time.monotonic()
            self._executor.send(CancelJob(job=attempt.unit.job, fence=attempt.unit.fence))

    def _escalate(self, attempt: Attempt) -> None:
        at = time.monotonic()
        if attempt.cancelled_at is not None:
            if at - attempt.cancelled_at > KILL_S:
                self._executor.kill(signal.SIGKILL)
            elif at - attempt.cancelled_at > TERMINATE_S and not attempt.terminated:
                attempt.terminated = True
                self._executor.kill(signal.SIGTERM)
        elif attempt.released_at is not None:
            if at - attempt.released_at > RELEASE_KILL_S:
                self._executor.kill(signal.SIGKILL)
        elif at - attempt.heard_at > _patience_s(attempt):
            _log.warning("executor_silent", job=attempt.unit.job, seconds=round(at - attempt.heard_at))
            self._executor.kill(signal.SIGKILL)


def _patience_s(attempt: Attempt) -> float:
    """How long nothing need be heard: ten times the longest silence so far, at least a minute; half an hour before the
    first step, when large models load."""
    if attempt.work_began_at is None:
        return LONGEST_SILENCE_S
    return min(max(SILENCE_S, SILENCE_FACTOR * attempt.longest_silence_s), LONGEST_SILENCE_S)
