"""F19: the device's memory is too small for a training step, in real processes: halves once, then a clear end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.test_training import PARAMS, WARM_S, photos
from tests.ml.tiny_base import write_tiny_base
from tests.worker.installation import Installation, installation
from worker.ml.families import describe_base

SHORT: dict[str, Any] = {**PARAMS, "steps": 6, "preview_every": 0}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("small")
    base = write_tiny_base(folder / "bases" / "tiny")
    described = describe_base(base)
    with installation(
        folder, base=described.id, base_hash=described.hash, base_models=[base], lease_s=30.0
    ) as studio:
        studio.start([sys.executable, "-m", "tests.worker.small_device"])
        studio.until(lambda: "executor_ready" in studio.log(), WARM_S)
        yield studio


def test_f19_twelve_rows_are_trained_in_two_sixes_and_the_result_says_so(studio: Installation) -> None:
    job = studio.ended(studio.train(photos(), **{**SHORT, "batch_size": 6}), 120)
    assert (job.state, job.attempt) == ("succeeded", 1), job.error
    assert studio.notes(job.id) == ["memory_short"]
    [weights] = studio.weights_of(job.id)
    assert weights.report == {"steps": 6, "gradient_accumulation": 2}
    plain = studio.ended(studio.train(photos(), **SHORT), 120)
    assert studio.weights_of(plain.id)[0].report == {"steps": 6}


def test_f19_twenty_rows_do_not_fit_in_halves_either(studio: Installation) -> None:
    job = studio.ended(studio.train(photos(), **{**SHORT, "batch_size": 10}), 120)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "gpu_out_of_memory")
    assert "smaller batch" in job.error["message"]
    assert job.error["retryable"] is False
    assert studio.notes(job.id) == ["memory_short", "gpu_out_of_memory"]
    assert studio.weights_of(job.id) == []
    after = studio.ended(studio.train(photos(), **SHORT), 120)
    assert after.state == "succeeded", after.error
