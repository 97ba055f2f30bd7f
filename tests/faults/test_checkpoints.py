"""A real training whose checkpoints go wrong while they are written: killed, or no room. The result is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_training import EMBEDDED, PARAMS, SLOWLY, WARM_S, photos, trained
from tests.ml.tiny_base import write_tiny_base
from tests.worker.installation import Installation, installation
from worker.ml.families import describe_base

PLACES = {
    "checkpoint.optimiser.safetensors": "kill",  # F5: inside the second of four files
    "checkpoint.scalars.json": "full",  # F17
    "result.before_write": "full",
}


def armed(studio: Installation, place: str) -> Path:
    """The file whose presence makes ``place`` act, once."""
    return studio.folder / place


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("checkpoints")
    base = write_tiny_base(folder / "bases" / "tiny")
    described = describe_base(base)
    with installation(
        folder, base=described.id, base_hash=described.hash, base_models=[base], checkpoint_s=0.3
    ) as studio:
        plan = [f"{place}={action}:{armed(studio, place)}" for place, action in PLACES.items()]
        studio.start(EMBEDDED, MOONGATE_FAILPOINTS=";".join([SLOWLY, *plan]))
        studio.until(lambda: "executor_ready" in studio.log(), WARM_S)
        yield studio


@pytest.fixture(scope="module")
def undisturbed(studio: Installation) -> str:
    return trained(studio, studio.train(photos(), **PARAMS))


def disturbed(studio: Installation, place: str) -> str:
    """A training that will meet ``place`` after its first checkpoint."""
    job_id = studio.train(photos(), **PARAMS)
    studio.at_step(job_id, 5, 60)
    studio.until(lambda: studio.job(job_id).checkpoint_step)
    armed(studio, place).touch()
    return job_id


def test_f5_killed_in_the_middle_of_a_checkpoint(studio: Installation, undisturbed: str) -> None:
    job_id = disturbed(studio, "checkpoint.optimiser.safetensors")
    unfinished = studio.settings.work_dir / "checkpoints" / job_id
    studio.until(lambda: studio.job(job_id).attempt == 2, 60)
    assert len(list(unfinished.glob("*/ckpt-*.tmp"))) <= 1
    assert trained(studio, job_id) == undisturbed
    assert studio.notes(job_id) == ["executor_died", "resumed"]


def test_f17_no_room_for_a_checkpoint_and_the_training_goes_on(
    studio: Installation, undisturbed: str
) -> None:
    job_id = disturbed(studio, "checkpoint.scalars.json")
    assert trained(studio, job_id) == undisturbed
    assert studio.notes(job_id) == ["checkpoint_not_written"]
    assert studio.job(job_id).attempt == 1


def test_f17_no_room_for_the_result_and_the_training_is_tried_again_from_its_last_checkpoint(
    studio: Installation, undisturbed: str
) -> None:
    job_id = disturbed(studio, "result.before_write")
    assert trained(studio, job_id) == undisturbed
    assert studio.notes(job_id) == ["storage_full", "resumed"]
    assert studio.job(job_id).attempt == 2
