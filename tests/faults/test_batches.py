"""kill -9 while two jobs are drawn together: both end well, each alone, and only a culprit pays with its own deaths."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_crashes import descendants, succeeded_once
from tests.worker.installation import DRILL, Installation, installation

CELERY = [
    sys.executable,
    "-m",
    "celery",
    "-A",
    "tests.worker.drill_celery",
    "worker",
    "-P",
    "threads",
    "-c",
    "1",
]


@pytest.fixture(params=["embedded", pytest.param("server", marks=pytest.mark.servers)])
def studio(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    more = {}
    if request.param == "server":
        servers = request.getfixturevalue("servers")
        more = {"database_url": servers.fresh_database(), "redis_url": servers.fresh_redis()}
    with installation(tmp_path, **more) as studio:
        yield studio


def start(studio: Installation, **environment: str) -> int:
    command = CELERY if studio.settings.redis_url else DRILL
    return studio.start(command, DRILL_LOOK_S="0.2", **environment).pid


def both_running(studio: Installation) -> tuple[list[str], int]:
    """Two jobs that are being drawn together, each with a picture published; and the supervisor's pid."""
    ids = [studio.generate("step_s=0.5", num_images=4, seed=seed) for seed in (1, 50)]
    pid = start(studio)
    studio.until(lambda: all(studio.images(each) for each in ids), 60)
    assert [studio.job(each).shared for each in ids] == [True, True]
    return ids, pid


def well_ended(studio: Installation, ids: list[str], told: str) -> None:
    for job_id in ids:
        succeeded_once(studio, job_id)
        job = studio.job(job_id)
        assert (job.attempt, job.deaths, job.alone, job.shared) == (2, 0, True, False)
        assert len(studio.images(job_id)) == 4
        assert [event.type for event in studio.events(job_id)].count("image") == 4
        assert studio.notes(job_id) == [told]


def test_the_executor_is_killed(studio: Installation) -> None:
    ids, pid = both_running(studio)
    [forkserver] = [child for child in descendants(pid) if descendants(child)]
    [executor] = descendants(forkserver)
    os.kill(executor, signal.SIGKILL)
    well_ended(studio, ids, "executor_died")


def test_the_supervisor_is_killed(studio: Installation) -> None:
    ids, pid = both_running(studio)
    os.kill(pid, signal.SIGKILL)
    studio.processes[-1].wait(20)
    start(studio)
    well_ended(studio, ids, "worker_lost")


def test_a_poison_job_is_found_and_its_neighbour_is_not_taken_along(tmp_path: Path) -> None:
    with installation(tmp_path) as studio:
        poison = studio.generate("die_at=1 deaths=99", num_images=2)
        good = studio.generate("fine", num_images=3)
        start(studio)
        other = studio.ended(good, 60)
        assert (other.state, other.attempt, other.deaths) == ("succeeded", 2, 0)
        job = studio.ended(poison, 60)
        assert job.error is not None
        assert (job.state, job.error["code"], job.deaths) == ("failed", "worker_lost", 3)
        assert studio.notes(poison) == ["executor_died"] * 4
