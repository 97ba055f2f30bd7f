"""When a training is going wrong, and what is done about it (reliability 2.5).

A step whose loss or gradient norm is not finite is skipped. More than five in a row, or fifty in a row above
twenty times the running median, and the training goes back to its last good state with half the learning
rate, once. The second time it has diverged. All of it is a function of the losses, so it repeats exactly;
after a resume the last good state is the checkpoint's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

SKIPS_IN_A_ROW = 5
EXPLOSION_FACTOR = 20.0
EXPLOSION_STEPS = 50
HISTORY = 200
GOOD_EVERY = 50
"""Steps between two in-memory snapshots of the last good state."""

Verdict = Literal["go", "skip", "recover"]


@dataclass
class LossWatch:
    """Judges each step by its loss and gradient norm. ``losses`` are those of calm steps, at most
    ``HISTORY``.
    """

    losses: list[float] = field(default_factory=list)
    skipped_in_a_row: int = 0
    high_in_a_row: int = 0

    def judge(self, loss: float, gradient_norm: float) -> Verdict:
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self.skipped_in_a_row += 1
            return "recover" if self.skipped_in_a_row > SKIPS_IN_A_ROW else "skip"
        self.skipped_in_a_row = 0
        if len(self.losses) >= 10 and loss > EXPLOSION_FACTOR * median(self.losses):
            self.high_in_a_row += 1
            return "recover" if self.high_in_a_row >= EXPLOSION_STEPS else "go"
        self.high_in_a_row = 0
        self.losses = [*self.losses, loss][-HISTORY:]
        return "go"

    @property
    def calm(self) -> bool:
        return self.skipped_in_a_row == 0 and self.high_in_a_row == 0

    def reset(self) -> None:
        """After going back: streaks start anew, the history stays."""
        self.skipped_in_a_row = self.high_in_a_row = 0

    def scalars(self) -> dict[str, Any]:
        return {
            "losses": list(self.losses),
            "skipped_in_a_row": self.skipped_in_a_row,
            "high_in_a_row": self.high_in_a_row,
        }

    @staticmethod
    def from_scalars(scalars: Mapping[str, Any]) -> LossWatch:
        return LossWatch(
            list(map(float, scalars["losses"])),
            int(scalars["skipped_in_a_row"]),
            int(scalars["high_in_a_row"]),
        )
