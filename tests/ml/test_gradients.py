"""A device too small for a whole batch: the same step in halves, once; and when halves do not fit either."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ml.teaching import prepare, stark, teach
from tests.ml.test_training import request_at
from worker.ml.conditioning import Conditioning
from worker.ml.errors import DeviceMemoryShort
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun, Released
from worker.ml.training.loop import Progress, advance, train


class SmallDevice:
    """A model on a device whose memory holds ``rows`` rows of the denoiser's batch from call ``since`` on."""

    def __init__(self, model: DiffusionModel, rows: int, since: int = 0) -> None:
        self._model, self._rows, self._since = model, rows, since
        self.sizes: list[int] = []
        self.failed: list[weakref.ref[Tensor]] = []
        self.leaked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        self.leaked |= any(tensor() is not None for tensor in self.failed)
        self.sizes.append(len(noisy))
        if len(noisy) > self._rows and len(self.sizes) > self._since:
            self.failed.append(weakref.ref(noisy))
            raise torch.OutOfMemoryError("the device's memory is full")
        return self._model.predict(noisy, timesteps, conditioning)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prior")


OPTIONS: list[dict[str, Any]] = [{}, {"batch_size": 3}, {"prior_weight": 0.0, "batch_size": 3}]


@pytest.mark.parametrize("options", OPTIONS, ids=["even", "odd", "without prior"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_halves_give_the_loss_and_the_gradients_of_the_whole(
    model: DiffusionModel, photos: list[Path], prior: Path, options: dict[str, Any], gamma: float | None
) -> None:
    trainees = [prepare(model, [stark(photos)], prior, **options) for _ in range(2)]
    whole, halved = (Progress(replace(trainee, min_snr_gamma=gamma)) for trainee in trainees)
    halved.parts = 2
    for _ in range(3):
        [one], [other] = (advance(model, [progress], InProcessRun()) for progress in (whole, halved))
        torch.testing.assert_close(other.total, one.total, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other.photos, one.photos, rtol=1e-5, atol=1e-6)
        for name, tensor in whole.tensors.items():
            assert tensor.grad is not None
            torch.testing.assert_close(halved.tensors[name].grad, tensor.grad, rtol=1e-3, atol=1e-6)


def test_two_trainees_are_halved_together(model: DiffusionModel, photos: list[Path], prior: Path) -> None:
    seeds = (1, 2)
    whole = [Progress(prepare(model, [stark(photos)], prior, seed=seed)) for seed in seeds]
    short = [Progress(prepare(model, [stark(photos)], prior, seed=seed)) for seed in seeds]
    device = SmallDevice(model, rows=4)
    together = advance(model, whole, InProcessRun())
    halved = advance(device, short, InProcessRun())
    assert device.sizes == [8, 4, 4]
    for one, other in zip(together, halved, strict=True):
        torch.testing.assert_close(other.total, one.total, rtol=1e-5, atol=1e-6)


def test_f19_once_out_of_memory_it_goes_on_in_halves_and_says_so(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    undisturbed = InProcessRun()
    teach(model, [stark(photos)], prior, run=undisturbed)
    device, run = SmallDevice(model, rows=2, since=2), InProcessRun()
    (weights,) = train(device, [prepare(model, [stark(photos)], prior)], run)
    assert weights.manifest.steps == 6
    assert device.sizes == [4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert not device.leaked  # what failed is dropped before the second try
    assert [code for code, _ in run.notes] == ["memory_short"]
    steps = run.history["train"]
    assert [step.get("gradient_accumulation") for step in steps] == [None, None, 2, 2, 2, 2]
    expected = [step["loss"] for step in undisturbed.history["train"]]
    assert [step["loss"] for step in steps] == pytest.approx(expected, rel=2e-3)


def test_f19_out_of_memory_in_halves_too_ends_the_training_with_a_hint(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    device, run = SmallDevice(model, rows=1), InProcessRun()
    with pytest.raises(DeviceMemoryShort, match="smaller batch") as caught:
        train(device, [prepare(model, [stark(photos)], prior)], run)
    assert (caught.value.code, caught.value.retryable) == ("gpu_out_of_memory", False)
    assert device.sizes == [4, 2]


def test_a_batch_of_one_row_cannot_be_halved(model: DiffusionModel, photos: list[Path], prior: Path) -> None:
    device = SmallDevice(model, rows=0)
    trainee = prepare(model, [stark(photos)], prior, batch_size=1, prior_weight=0.0)
    with pytest.raises(DeviceMemoryShort):
        train(device, [trainee], InProcessRun())
    assert device.sizes == [1]


def test_what_was_halved_stays_halved_after_a_resume(
    model: DiffusionModel, photos: list[Path], prior: Path, tmp_path: Path
) -> None:
    (undisturbed,) = train(
        SmallDevice(model, rows=2, since=2), [prepare(model, [stark(photos)], prior)], InProcessRun()
    )
    with pytest.raises(Released):
        train(
            SmallDevice(model, rows=2, since=2),
            [prepare(model, [stark(photos)], prior)],
            request_at(InProcessRun(tmp_path), 4, "release"),
        )
    run = InProcessRun(tmp_path)
    (resumed,) = train(
        model, [prepare(model, [stark(photos)], prior)], run
    )  # the model fits again: no matter
    assert resumed.to_bytes() == undisturbed.to_bytes()
    assert run.history["train"][0]["gradient_accumulation"] == 2
