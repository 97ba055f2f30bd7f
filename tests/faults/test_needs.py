"""Processes that die between the end of a training and the beginning of what waits for it."""

from __future__ import annotations

import pytest

from tests.faults.test_batches import start, studio
from tests.faults.test_crashes import succeeded_once
from tests.worker.installation import Installation

__all__ = ["studio"]


def asked(studio: Installation) -> tuple[str, str]:
    training = studio.train(steps=3)
    job_id = studio.generate(num_images=1, needs=[training])
    assert studio.job(job_id).state == "blocked"
    return training, job_id


def drawn_with(studio: Installation, job_id: str, training: str) -> None:
    succeeded_once(studio, job_id)
    [weights] = studio.weights_of(training)
    assert [used["file"]["id"] for used in studio.job(job_id).spec["weights"]] == [weights.id]
    [image] = studio.images(job_id)
    assert [(used["id"], used["scale"]) for used in image.recipe["weights"]] == [(weights.id, 1.0)]
    assert studio.job(job_id).attempt == 1


@pytest.mark.parametrize("place", ["publish.after_commit", "unblock.before_commit"])
def test_the_supervisor_is_killed_in_between(studio: Installation, place: str) -> None:
    training, job_id = asked(studio)
    once = studio.folder / "once"
    once.touch()
    start(studio, MOONGATE_FAILPOINTS=f"{place}=kill:{once}")
    assert studio.processes[-1].wait(60) == -9
    assert (studio.job(training).state, studio.job(job_id).state) == ("succeeded", "blocked")
    start(studio)
    drawn_with(studio, job_id, training)


def test_nobody_is_killed_and_it_begins_at_once(studio: Installation) -> None:
    training, job_id = asked(studio)
    start(studio)
    drawn_with(studio, job_id, training)
    begun, ended = studio.job(job_id).started_at, studio.job(training).finished_at
    assert begun is not None
    assert ended is not None
    assert begun > ended
