"""A stage's budget of wall time, its cosine learning rate, and a line of progress now and then."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Budget:
    """``seconds`` of training. ``spent_s`` and ``start_step`` are what an earlier, interrupted run used up."""

    seconds: float
    log: Path
    spent_s: float = 0.0
    start_step: int = 0
    warmup_steps: int = 300
    report_every: int = 100
    _began: float = field(default_factory=time.monotonic)
    _step: int = 0

    @classmethod
    def resumed(cls, seconds: float, log: Path) -> Budget:
        """Go on where the newest line of ``log`` stopped, or begin."""
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        last = lines[-1] if lines else {"spent_s": 0.0, "step": 0}
        return cls(seconds, log, spent_s=float(last["spent_s"]), start_step=int(last["step"]))

    @property
    def now_s(self) -> float:
        return self.spent_s + time.monotonic() - self._began

    @property
    def share(self) -> float:
        """Of the budget, in [0, 1]."""
        return min(1.0, self.now_s / self.seconds)

    def steps(self, endless: bool = False) -> Iterator[int]:
        """Step numbers until the time is over; ``endless``: until the caller stops, for processes that stop
        together.
        """
        step = self.start_step
        while endless or self.now_s < self.seconds:
            self._step = step
            yield step
            step += 1

    def learning_rate(self, peak: float, floor: float = 0.02) -> float:
        """Linear warm-up, then cosine to ``floor * peak`` at the end of the budget."""
        warm = min(1.0, (self._step - self.start_step + 1) / self.warmup_steps)
        return peak * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.share)))

    def report(self, step: int, batch: int, **measures: float) -> None:
        """One JSON line every ``report_every`` steps."""
        if step % self.report_every == self.report_every - 1:
            rate = (step + 1 - self.start_step) * batch / (self.now_s - self.spent_s)
            entry = {
                "step": step + 1,
                "batch": batch,
                "spent_s": round(self.now_s, 1),
                "samples_per_s": round(rate, 1),
            }
            with self.log.open("a") as log:
                log.write(
                    json.dumps(entry | {name: round(value, 5) for name, value in measures.items()}) + "\n"
                )
