"""Many small drawings that report as one piece of work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.ml.run import PreviewImage, Run
from worker.ml.training.checkpoint import Checkpoint


@dataclass
class CountedRun:
    """A `Run` that counts the steps of ``total`` small drawings as one. ``so_far()`` of them are over: where some are
    kept from before; else those that came to their end are counted. ``unit``: what they are called together.
    """

    run: Run
    total: int
    so_far: Callable[[], int] | None = None
    unit: str = ""
    ended: int = 0

    @property
    def checkpoint_s(self) -> float:
        return self.run.checkpoint_s

    def step(self, unit: str, done: int, total: int, **metrics: float) -> None:
        over = self.ended if self.so_far is None else self.so_far()
        self.ended += done == total
        self.run.step(self.unit or unit, over * total + done, self.total * total, **metrics)

    def preview(self, unit: str, step: int, images: Sequence[PreviewImage]) -> None:
        self.run.preview(unit, step, images)

    def checkpoint(self, unit: str, state: Checkpoint) -> None:
        self.run.checkpoint(unit, state)

    def resume(self, unit: str) -> Checkpoint | None:
        return self.run.resume(unit)

    def note(self, code: str, message: str) -> None:
        self.run.note(code, message)
