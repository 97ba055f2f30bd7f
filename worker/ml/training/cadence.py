"""When a checkpoint is due: after a wished time, stretched so that writing takes at most a twentieth of the
run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

SHARE = 0.05


@dataclass
class Cadence:
    """Times in seconds of ``clock`` (monotonic). Only *when* is decided by the clock; what is computed never
    depends on it.
    """

    every_s: float
    clock: Callable[[], float] = time.monotonic
    last_s: float = field(init=False)
    cost_s: float = 0.0

    def __post_init__(self) -> None:
        self.last_s = self.clock()

    def due(self) -> bool:
        """``every_s`` have passed, or more where a checkpoint is dear."""
        return self.clock() - self.last_s >= max(self.every_s, self.cost_s / SHARE)

    def affordable(self) -> bool:
        """Cheap enough to be written ahead of its time (before previews)."""
        return self.clock() - self.last_s >= self.cost_s / SHARE

    def written(self, started_s: float) -> None:
        """A checkpoint that began at ``started_s`` is safe now."""
        self.last_s = self.clock()
        self.cost_s = self.last_s - started_s
