"""What the executor's messages mean for the job: progress to write, pictures to publish, an end to commit."""

from __future__ import annotations

from typing import Any

import structlog

from backend.errors import InsufficientStorage
from backend.identifiers import new_id
from backend.models import Job
from backend.schemas.executor import (
    Checkpointed,
    Failed,
    FromExecutor,
    ImageDone,
    Loss,
    Note,
    Preview,
    Progress,
    Stopped,
    Succeeded,
)
from backend.services import leases, needs
from backend.services.job_events import Event, note
from backend.settings import Settings
from backend.storage import Storage
from worker.attempt import Attempt
from worker.executor_process import Died
from worker.patience import Patience
from worker.publication import Publication
from worker.verification import OutputInvalid

_log = structlog.get_logger(__name__)
LAST_WORDS = (Succeeded, Failed, Stopped, Died)
"""After one of these the executor no longer computes the job."""
RESTARTED = note("released", "The worker was restarted; the job goes on afterwards.")
_STORAGE_FULL = "The disk of the studio is full. Free some space, then retry."


class Outcomes:
    """Every method that writes may raise LeaseLost."""

    def __init__(self, patience: Patience, storage: Storage, settings: Settings) -> None:
        self._commit = patience.commit
        self._publication = Publication(storage, patience.commit)
        self._settings = settings

    def begin(self, attempt: Attempt, job: Job) -> None:
        """The first event of an attempt, and what the job's page shall say about it."""
        started = job.started_at or job.created_at
        metrics = {
            **job.metrics,
            "queue_s": round((started - job.created_at).total_seconds(), 3),
            "checkpoint_s": self._settings.checkpoint_s,
        }
        shown = {"phase": "loading", "step": job.step, "total": job.total_steps, "rate": None, "eta_s": None}
        self._commit(
            lambda session: leases.report(session, attempt.unit, [Event("progress", shown)], metrics=metrics)
        )

    def write(self, attempt: Attempt) -> None:
        """Store the progress that waits."""
        events, columns = attempt.take()
        if events or columns:
            self._commit(lambda session: leases.report(session, attempt.unit, events, **columns))

    def take(self, attempt: Attempt, message: FromExecutor | Died) -> bool:
        """Deal with one message; whether the attempt is over."""
        if attempt.lost:
            return isinstance(message, LAST_WORDS)
        match message:
            case Progress():
                attempt.progress(message)
            case Loss():
                attempt.loss(message)
            case Note():
                attempt.note(message)
            case Checkpointed():
                self._commit(lambda session: leases.checkpointed(session, attempt.unit, message.step))
            case Preview() | ImageDone():
                return self._picture(attempt, message)
            case Succeeded() | Failed() | Stopped() | Died():
                self.write(attempt)
                return self._end(attempt, message)
        return False

    def refuse(
        self,
        attempt: Attempt,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        trace: str = "",
        report: dict[str, Any] | None = None,
    ) -> None:
        """End the attempt with an error."""
        detail = new_id()
        _log.warning("job_failed", job=attempt.unit.job, code=code, detail_id=detail, trace=trace)
        error = {"code": code, "retryable": retryable, "message": message, "detail_id": detail}
        state = self._commit(
            lambda session: leases.fail(session, attempt.unit, error, self._settings.max_attempts, report)
        )
        attempt.sweep(checkpoints=state in ("failed", "cancelled"))

    # ---- ends

    def _picture(self, attempt: Attempt, message: Preview | ImageDone) -> bool:
        if attempt.cancelled_at is not None:
            return False
        try:
            if isinstance(message, Preview):
                self._publication.preview(attempt, message)
            else:
                self._publication.image(attempt, message)
        except (OutputInvalid, InsufficientStorage) as error:
            _log.warning("picture_not_published", job=attempt.unit.job, reason=str(error))
            attempt.unpublishable = error
        return False

    def _end(self, attempt: Attempt, message: Succeeded | Failed | Stopped | Died) -> bool:
        match message:
            case Succeeded():
                self._succeeded(attempt, message)
            case Failed():
                attempt.spoilt_device = message.sticky
                if message.sticky and attempt.shared:
                    self._died(attempt, note(message.code, "The device failed during this job and others."))
                    return True
                self.refuse(
                    attempt, message.code, message.message, retryable=message.retryable, trace=message.trace,
                    report=message.report,
                )  # fmt: skip
            case Stopped(reason="cancelled"):
                self._commit(lambda session: leases.cancelled(session, attempt.unit))
                attempt.sweep(checkpoints=True)
            case Stopped():
                self._released(attempt, attempt.release_cause or RESTARTED)
            case Died():
                gone = f"The process that computed this job is gone: {message.words}."
                self._died(attempt, note("executor_died", gone))
        return True

    def _succeeded(self, attempt: Attempt, message: Succeeded) -> None:
        try:
            if attempt.unpublishable is not None:
                raise attempt.unpublishable
            published = self._publication.success(attempt, message)
        except InsufficientStorage:
            self.refuse(attempt, "storage_full", _STORAGE_FULL, retryable=True)
            return
        except OutputInvalid as error:
            told = "The result did not pass its last check and was not published."
            self.refuse(attempt, "output_invalid", told, retryable=True, trace=str(error))
            return
        if not published:
            self._commit(lambda session: leases.cancelled(session, attempt.unit))
        attempt.sweep(checkpoints=True)
        _log.info("job_ended", job=attempt.unit.job, published=published)
        self._commit(lambda session: needs.settle(session, finished=attempt.unit.job))

    def _released(self, attempt: Attempt, cause: Event) -> None:
        state = self._commit(lambda session: leases.release(session, attempt.unit, cause))
        _log.info("job_released", job=attempt.unit.job, state=state)
        attempt.sweep(checkpoints=state == "cancelled")

    def _died(self, attempt: Attempt, cause: Event) -> None:
        if attempt.cancelled_at is not None:
            self._commit(lambda session: leases.cancelled(session, attempt.unit))
            attempt.sweep(checkpoints=True)
            return
        if attempt.released_at is not None:
            self._released(attempt, attempt.release_cause or RESTARTED)
            return
        state = self._commit(
            lambda session: leases.requeue_after_death(
                session, attempt.unit, cause, self._settings.max_deaths
            )
        )
        _log.warning("job_requeued", job=attempt.unit.job, state=state)
        attempt.sweep(checkpoints=state in ("failed", "cancelled"))
