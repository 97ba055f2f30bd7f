"""The sampling engine: pictures depend on their own recipe only, requests take effect within a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ml.teaching import everything, same, stark, teach
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt
from worker.ml.errors import InputInvalid, MethodUnsupported, PromptTooLong, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Cancelled, InProcessRun, Released
from worker.ml.sampling.engine import GenerationUnit, generate
from worker.ml.sampling.latents import Picture, first_noise

UNIT = GenerationUnit(0, "a photo of a dog", "", 11, 4, 5.0, "dpmsolver++", 32, 32)


@pytest.fixture(scope="module")
def weights(
    model: DiffusionModel, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> ConceptWeights:
    return teach(model, [stark(photos)], tmp_path_factory.mktemp("prior"), learning_rate=0.02)


def units(weights: ConceptWeights) -> list[GenerationUnit]:
    """Different texts, concepts, scales, guidance, sizes and schedulers."""
    taught = replace(UNIT, text="a photo of a <stark> dog")
    return [
        UNIT,
        replace(taught, index=1, weights=((weights, 1.0),)),
        replace(taught, index=2, seed=5, weights=((weights, 0.4),), guidance_scale=2.0),
        replace(UNIT, index=3, width=48, seed=12),
        replace(UNIT, index=4, negative_text="snow", seed=13),
        replace(taught, index=5, scheduler="euler", weights=((weights, 1.0),)),
        replace(UNIT, index=6, guidance_scale=1.0),
    ]


def test_neighbours_do_not_matter(model: DiffusionModel, weights: ConceptWeights) -> None:
    wanted = units(weights)
    together = {unit.index: pixels for unit, pixels in generate(model, wanted, InProcessRun(), batch_size=7)}
    assert set(together) == set(range(7))
    for unit in wanted:
        ((_, alone),) = generate(model, [unit], InProcessRun())
        assert alone.shape == (unit.height, unit.width, 3)
        assert np.abs(alone.astype(int) - together[unit.index].astype(int)).max() <= 2


def test_weights_at_scale_zero_draw_the_base_models_picture(
    model: DiffusionModel, weights: ConceptWeights
) -> None:
    drawn = [replace(UNIT, weights=chosen) for chosen in ((), ((weights, 0.0),), ((weights, 1.0),))]
    base, zero, full = (pixels for _, pixels in generate(model, drawn, InProcessRun(), batch_size=1))
    assert np.array_equal(base, zero)
    assert not np.array_equal(base, full)


def test_the_base_model_is_untouched(model: DiffusionModel, weights: ConceptWeights) -> None:
    before = everything(model)
    list(generate(model, units(weights), InProcessRun()))
    assert same(before, everything(model))


def test_progress_counts_every_solver_step(model: DiffusionModel) -> None:
    seen: list[tuple[str, int, int]] = []
    run = InProcessRun(on_step=lambda unit, done, total, _: seen.append((unit, done, total)))
    list(generate(model, [replace(UNIT, index=i, seed=i) for i in range(3)], run, batch_size=2))
    assert seen == [("images", d, 12) for d in (2, 4, 6, 8, 9, 10, 11, 12)]


@pytest.mark.parametrize(
    ("request_", "raised"), [("cancel", Cancelled), ("release", Released), ("finish", Cancelled)]
)
def test_a_request_acts_within_one_step(
    model: DiffusionModel, request_: str, raised: type[Exception]
) -> None:
    steps = 0

    def count(unit: str, done: int, total: int, metrics: dict[str, float]) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            run.request = request_  # type: ignore[assignment]

    run = InProcessRun(on_step=count)
    with pytest.raises(raised):
        list(generate(model, [UNIT], run))
    assert steps == 3


def test_finished_pictures_come_before_the_rest_is_drawn(model: DiffusionModel) -> None:
    run = InProcessRun()
    drawing = generate(model, [replace(UNIT, index=i, seed=i) for i in range(2)], run, batch_size=1)
    unit, _ = next(drawing)
    assert unit.index == 0
    run.request = "cancel"
    with pytest.raises(Cancelled):
        next(drawing)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"width": 36}, InputInvalid, "multiples of 8"),
        ({"height": 4096}, InputInvalid, "up to 64"),
        ({"scheduler": "magic"}, InputInvalid, "no scheduler magic"),
        ({"num_inference_steps": 0}, InputInvalid, "at least one step"),
        ({"text": "dog " * 40}, PromptTooLong, "more than this base model takes"),
        ({"text": "a <wolf>"}, InputInvalid, "No chosen weights teach"),
    ],
)
def test_bad_recipes_are_refused_with_a_sentence(
    model: DiffusionModel, change: dict[str, object], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        list(generate(model, [replace(UNIT, **change)], InProcessRun()))  # type: ignore[arg-type]


def test_weights_of_another_base_or_method_are_refused(
    model: DiffusionModel, v_model: DiffusionModel, weights: ConceptWeights
) -> None:
    with pytest.raises(WeightsInvalid, match="trained on tiny, not on tiny-v"):
        list(generate(v_model, [replace(UNIT, weights=((weights, 1.0),))], InProcessRun()))
    other = ConceptWeights(weights.manifest.model_copy(update={"method": "magic"}), weights.tensors)
    with pytest.raises(MethodUnsupported, match="magic"):
        list(generate(model, [replace(UNIT, weights=((other, 1.0),))], InProcessRun()))


def test_the_first_noise_is_the_seeds_and_nothing_elses(model: DiffusionModel) -> None:
    picture = Picture(Prompt("x"), Prompt(""), 11, 4, 5.0, "ddim", 32, 32)
    expected = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(11))[0]
    assert torch.equal(first_noise(model, picture), expected)
