"""Where a job's seconds go."""

from __future__ import annotations

from backend.schemas.jobs import WorkSpent
from worker.work_clock import WorkClock


def test_time_belongs_to_the_work_that_ends_it() -> None:
    at = iter([100.0, 101.5, 103.5, 104.0, 110.0])
    clock = WorkClock(lambda: next(at))
    clock.ended("loading")
    clock.ended("train")
    clock.ended("preview", count=0)
    clock.ended("train")
    assert clock.spent == {
        "loading": WorkSpent(seconds=1.5, count=1),
        "train": WorkSpent(seconds=8.0, count=2),
        "preview": WorkSpent(seconds=0.5, count=0),
    }
