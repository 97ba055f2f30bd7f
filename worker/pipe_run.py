"""The executor's side of a running job: what the science reports goes over the pipe, what people ask comes back.

``PipeRun`` is a ``worker.ml.run.Run``; this file itself needs no tensor library.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from backend.schemas.executor import FromExecutor, ImageDone, Loss, Note, Progress, RunJob
from backend.schemas.generations import GuidedAttention
from backend.schemas.presence import Presence

REPORT_S = 0.25
PHASES = {
    "prior": "preparing",
    "spectra": "preparing",
    "photos": "preparing",
    "masks": "preparing",
    "preview": "training",
    "images": "drawing",
    "calibration": "calibrating",
    "compress": "compressing",
    "comparison": "comparing",
    "merge": "merging",
}
"""What a unit of work of the science is called on a page; everything else is training."""
Asked = Literal["cancel", "finish", "release"]


class Send(Protocol):
    """Puts one message on the pipe."""

    def __call__(self, message: FromExecutor) -> None: ...


def boot_clock() -> float:
    """Seconds on a clock that also counts suspended time (where there is one)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Reporter:
    """Progress, losses, notes and pictures of one attempt, throttled. Requests arrive from the reading thread."""

    def __init__(self, job: RunJob, send: Send) -> None:
        self.job = job
        self.tag: dict[str, Any] = {"job": job.job, "fence": job.fence}
        self.send = send
        self.staging = Path(job.staging)
        self.drawn = set(job.done_indices)
        self._asked: Asked | None = None
        self._lock = threading.Lock()
        self._renewed = boot_clock()
        self._sent_at = 0.0
        self._phase = ""
        self._points: list[tuple[int, float]] = []
        self._phase_started = (0, 0.0)

    # ---- from the supervisor

    def ask(self, what: Asked) -> None:
        """Cancel beats everything, release beats finish."""
        order: tuple[Asked | None, ...] = (None, "finish", "release", "cancel")
        with self._lock:
            self._asked = max(self._asked, what, key=order.index)

    def renew(self) -> None:
        """The lease was renewed."""
        self._renewed = boot_clock()

    @property
    def asked(self) -> Asked | None:
        """What to do at the next boundary; a lease that nobody renews asks for release by itself."""
        if self._asked is None and boot_clock() - self._renewed > self.job.lease_s:
            return "release"
        return self._asked

    # ---- to the supervisor

    def progress(self, phase: str, step: int, total: int) -> None:
        """At most four a second, but every change of phase and every end."""
        at = time.monotonic()
        if phase != self._phase:
            self._phase, self._phase_started = phase, (step, at)
        elif step < total and at - self._sent_at < REPORT_S:
            return
        first, began = self._phase_started
        rate = (step - first) / (at - began) if step > first and at > began else None
        eta = (total - step) / rate if rate else None
        self._sent_at = at
        self.send(Progress(**self.tag, phase=phase, step=step, total=total, rate=rate, eta_s=eta))
        self.flush()

    def loss(self, step: int, value: float) -> None:
        """Kept until the next progress message."""
        self._points.append((step, value))

    def flush(self) -> None:
        """Send the losses that wait."""
        if self._points:
            self.send(Loss(**self.tag, points=self._points))
            self._points = []

    def note(self, code: str, message: str) -> None:
        """A sentence for the job's page."""
        self.send(Note(**self.tag, code=code, message=message))

    def image(
        self,
        index: int,
        seed: int,
        file: Path,
        presence: Sequence[Presence] = (),
        attention: GuidedAttention | None = None,
    ) -> None:
        """A picture stands in staging; it is not drawn again. ``attention`` where it is not what the spec says."""
        self.drawn.add(index)
        self.send(
            ImageDone(
                **self.tag,
                index=index,
                seed=seed,
                file=file.name,
                presence=list(presence),
                attention=attention,
            )
        )
