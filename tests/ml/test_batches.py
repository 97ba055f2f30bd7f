"""Pictures of several jobs in one batch: some leave early, the device is too small, and the rest is as if alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.schemas.generations import SCHEDULERS
from worker.ml.conditioning import Conditioning
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun
from worker.ml.sampling.engine import GenerationUnit, draw, generate, pictures

UNIT = GenerationUnit(0, "a photo of a dog", "", 11, 5, 5.0, "dpmsolver++", 32, 32)


class Leaving:
    """Watches a batch; the picture at ``place`` is no longer wanted after ``step`` solver steps."""

    def __init__(self, place: int, step: int) -> None:
        self.place, self.step = place, step
        self.steps: dict[int, int] = {}
        self.halvings = 0

    def wanted(self, place: int) -> bool:
        return place != self.place or self.steps.get(place, 0) < self.step

    def stepped(self, places: Sequence[int], step: int) -> None:
        self.steps |= dict.fromkeys(places, step)

    def halved(self, size: int) -> None:
        self.halvings += 1


class Small:
    """A base model whose device holds so many rows of a batch."""

    def __init__(self, model: DiffusionModel, rows: int) -> None:
        self._model, self._rows = model, rows
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if len(noisy) > self._rows:
            raise torch.OutOfMemoryError("the device's memory is full")
        self.calls.append(len(noisy))
        return self._model.predict(noisy, timesteps, conditioning)


def alone(model: DiffusionModel, unit: GenerationUnit) -> Any:
    ((_, pixels),) = generate(model, [unit], InProcessRun())
    return pixels.astype(int)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("scheduler", [each.name for each in SCHEDULERS])
def test_a_picture_leaves_and_the_others_do_not_notice(
    model: DiffusionModel, scheduler: str, guidance: float
) -> None:
    units = [
        replace(
            UNIT, index=i, seed=i, scheduler=scheduler, guidance_scale=guidance, text=f"a photo of {i} dogs"
        )
        for i in range(3)
    ]
    watch = Leaving(1, 3)
    drawn = dict(draw(model, pictures(model, units), watch, batch_size=3))
    assert sorted(drawn) == [0, 2]
    assert watch.steps == {0: 5, 1: 3, 2: 5}
    for place in (0, 2):
        assert np.abs(alone(model, units[place]) - drawn[place].astype(int)).max() <= 2


def test_what_nobody_wants_is_not_begun(model: DiffusionModel) -> None:
    watch = Leaving(0, 0)
    assert list(draw(model, pictures(model, [UNIT]), watch)) == []
    assert watch.steps == {}


def test_too_many_at_once_are_drawn_in_halves(model: DiffusionModel) -> None:
    small = Small(model, 4)  # two pictures, guided
    units = [replace(UNIT, index=i, seed=i) for i in range(5)]
    run = InProcessRun()
    drawn = {unit.index: pixels for unit, pixels in generate(small, units, run, batch_size=5)}  # type: ignore[arg-type]
    assert sorted(drawn) == list(range(5))
    assert set(small.calls) == {4, 2}
    assert [code for code, _ in run.notes] == ["memory_short", "memory_short"]
    for unit in units:
        assert np.abs(alone(model, unit) - drawn[unit.index].astype(int)).max() <= 2


def test_a_picture_that_does_not_fit_alone_is_an_error(model: DiffusionModel) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(generate(Small(model, 1), [UNIT], InProcessRun()))  # type: ignore[arg-type]
