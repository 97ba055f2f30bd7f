"""One attempt at one job, as the supervisor holds it: its fence, its folders, its clocks, what is not yet written."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.models import Job
from backend.schemas.executor import Loss, Note, Progress, Succeeded, Unit
from backend.services.job_events import Event, note
from worker.pipe_run import boot_clock

WRITE_S = 1.0
"""Progress and losses are stored together, at most this often; notes and new phases at once."""
_WORKING = ("training", "drawing", "compressing")


@dataclass
class Attempt:
    """Times are of ``time.monotonic`` unless said otherwise."""

    unit: Unit
    kind: str
    spec: dict[str, Any]
    priority: int
    staging: Path
    checkpoints: Path
    shared: bool = False
    claimed_at: float = field(default_factory=time.monotonic)
    renewed_at: float = field(default_factory=boot_clock)  # boot clock
    heard_at: float = field(default_factory=time.monotonic)
    longest_silence_s: float = 0.0
    work_began_at: float | None = None
    cancelled_at: float | None = None
    released_at: float | None = None
    release_cause: Event | None = None
    terminated: bool = False
    finish_sent: bool = False
    computing: bool = False
    lost: bool = False
    spoilt_device: bool = False
    unpublishable: Exception | None = None
    phase: str = "loading"
    _events: list[Event] = field(default_factory=list)
    _points: list[tuple[int, float]] = field(default_factory=list)
    _progress: Progress | None = None
    _urgent: bool = False
    _written_at: float = 0.0

    @classmethod
    def of(cls, job: Job, work_dir: Path) -> Attempt:
        """The attempt that has just claimed ``job``."""
        return cls(
            Unit(job=job.id, fence=job.fence),
            job.kind,
            job.spec,
            job.priority,
            work_dir / "staging" / job.id / str(job.fence),
            work_dir / "checkpoints" / job.id,
            job.shared,
        )

    # ---- what the executor says

    def heard(self) -> None:
        """Any message: it lives."""
        at = time.monotonic()
        self.longest_silence_s = max(self.longest_silence_s, at - self.heard_at)
        self.heard_at = at

    def progress(self, message: Progress) -> None:
        """Keep the newest; a new phase is written at once."""
        if message.phase != self.phase:
            self._urgent = True
            self.phase = message.phase
        if message.phase in _WORKING and self.work_began_at is None:
            self.work_began_at = time.monotonic()
        self._progress = message

    def loss(self, message: Loss) -> None:
        self._points += message.points

    def note(self, message: Note) -> None:
        self._events.append(note(message.code, message.message))
        self._urgent = True

    # ---- what the database gets

    def due(self) -> bool:
        """Whether something waits that should be written now."""
        waiting = self._progress is not None or self._points or self._events
        return bool(waiting) and (self._urgent or time.monotonic() - self._written_at >= WRITE_S)

    def take(self) -> tuple[list[Event], dict[str, Any]]:
        """Events and columns to write; they are forgotten here."""
        events, columns = self._events, {}
        if self._points:
            events.append(Event("loss", {"points": [list(point) for point in self._points]}))
        if (now := self._progress) is not None:
            columns = {
                "phase": now.phase,
                "step": now.step,
                "total_steps": now.total,
                "rate": now.rate,
                "eta_s": now.eta_s,
            }
            shown = {
                "phase": now.phase,
                "step": now.step,
                "total": now.total,
                "rate": now.rate,
                "eta_s": now.eta_s,
            }
            events.append(Event("progress", shown))
        self._events, self._points, self._progress, self._urgent = [], [], None, False
        self._written_at = time.monotonic()
        return events, columns

    def metrics(self, done: Succeeded) -> dict[str, Any]:
        """Seconds of preparation and of work in this attempt, and what its executor measured."""
        at = time.monotonic()
        began = self.work_began_at if self.work_began_at is not None else at
        return {
            "prepare_s": round(began - self.claimed_at, 3),
            "run_s": round(at - began, 3),
            "peak_memory_bytes": done.peak_memory_bytes,
            **({"spent": done.model_dump(mode="json")["spent"]} if done.spent else {}),
        }

    def sweep(self, *, checkpoints: bool) -> None:
        """Remove this attempt's staging, and the checkpoints when the job is over."""
        shutil.rmtree(self.staging, ignore_errors=True)
        if checkpoints:
            shutil.rmtree(self.staging.parent, ignore_errors=True)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
