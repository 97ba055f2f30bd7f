"""A database that does not answer for a while: short of a lease nothing is lost, beyond it the worker fences itself.

F14 and F15 of reliability 3, on SQLite, whose writer lock another connection holds.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.test_crashes import succeeded_once
from tests.worker.installation import Installation, installation


@contextmanager
def no_writes(studio: Installation) -> Iterator[None]:
    """Nobody can write to the database meanwhile."""
    connection = sqlite3.connect(
        studio.settings.data_dir / "moongate.sqlite3", isolation_level=None, timeout=10
    )
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.rollback()
        connection.close()


def test_f14_a_short_absence_costs_nothing(tmp_path: Path) -> None:
    with installation(tmp_path, lease_s=30.0) as studio:
        studio.start()
        job_id = studio.train(steps=60, step_s=0.03)
        studio.at_step(job_id, 5)
        with no_writes(studio):
            time.sleep(3.0)
        succeeded_once(studio, job_id, 60)
        assert studio.job(job_id).attempt == 1
        assert studio.notes(job_id) == []


def test_f15_beyond_the_lease_the_executor_stops_and_the_job_ends_once(tmp_path: Path) -> None:
    with installation(tmp_path, lease_s=2.0) as studio:
        studio.start()
        job_id = studio.train(steps=400, step_s=0.03)
        studio.at_step(job_id, 5)
        kept = studio.settings.work_dir / "checkpoints" / job_id / "step.json"
        with no_writes(studio):
            studio.until(kept.exists)  # released by itself, although nobody could tell it to
            written = kept.read_text()
            time.sleep(1.0)
            assert kept.read_text() == written  # and no longer computing
        succeeded_once(studio, job_id, 400)
        assert "resumed" in studio.notes(job_id)
        assert len(studio.weights_of(job_id)) == 1
