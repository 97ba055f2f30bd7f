"""Where a job's seconds go, kind of work by kind of work: what forecasts of later jobs learn from."""

from __future__ import annotations

import time
from collections.abc import Callable

from backend.schemas.jobs import WorkSpent


class WorkClock:
    """Runs from when it is made. Time belongs to the kind of work that ends it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self.spent: dict[str, WorkSpent] = {}

    def ended(self, kind: str, count: int = 1) -> None:
        """``count`` pieces of a kind of work are done; 0 where it goes on."""
        now, before = self._clock(), self.spent.get(kind, WorkSpent(seconds=0.0, count=0))
        self.spent[kind] = WorkSpent(seconds=before.seconds + now - self._since, count=before.count + count)
        self._since = now
