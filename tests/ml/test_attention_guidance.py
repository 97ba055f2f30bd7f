"""Attention guidance: the least attended word gains, nothing else is touched, and a picture stays its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.schemas.weights import TaughtToken
from tests.ml.teaching import everything, random_edit, same, stark, teach
from worker.ml.attention_maps import maps, middle, smoothed, watched
from worker.ml.conditioning import Attended, Prompt, TextEdit, TokenRows, text_kv
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import ConceptExamples
from worker.ml.regions import Box
from worker.ml.run import Cancelled, InProcessRun
from worker.ml.sampling.attention_guidance import (
    AttentionGuidance,
    gradient,
    least_attended,
    moved,
    step_size,
)
from worker.ml.sampling.engine import GenerationUnit, RegionUnit, generate, pictures
from worker.ml.sampling.latents import Picture, first_noise
from worker.ml.sampling.schedulers import build_scheduler
from worker.ml.word_positions import subject_words

UNIT = GenerationUnit(0, "a photo of a <stark> dog", "", 11, 6, 5.0, "ddim", 32, 32)
TEXT = "a photo of a <stark> dog on the beach"


@pytest.fixture(scope="module", params=["custom-diffusion", "lora"])
def weights(
    request: pytest.FixtureRequest,
    model: DiffusionModel,
    photos: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """A concept of each side, taught so little that not all attention is its already."""
    folder = tmp_path_factory.mktemp("prior")
    return teach(model, [stark(photos)], folder, method=request.param, learning_rate=0.002)


def drawn(model: DiffusionModel, *units: GenerationUnit, run: InProcessRun | None = None) -> list[Any]:
    found = {
        unit.index: pixels for unit, pixels in generate(model, units, run or InProcessRun(), batch_size=8)
    }
    return [found[unit.index].astype(int) for unit in units]


# ---- words


def word(model: DiffusionModel, text: str, edit: TextEdit, **taught: Any) -> tuple[int, ...] | None:
    entry = {"token": "stark", "class_noun": "dog", "kind": "subject", **taught}
    return subject_words(model, Prompt(text, ((edit, 1.0),)), [TaughtToken(**entry)]).get("stark")


def test_a_word_is_its_placeholder_and_the_noun_behind_it(model: DiffusionModel) -> None:
    edit = random_edit(model)
    ids = model.token_ids("a photo of a", {})
    before = ids.index(model.token_ids("", {})[1])
    assert word(model, TEXT, edit) == (before, before + 1)
    assert word(model, "a photo of a <stark>", edit) == (before,)
    assert word(model, "a photo of a <stark> dogs", edit) == (before,)
    assert word(model, "<stark> Dog on <stark> dog", edit) == (1, 2, 4, 5)
    assert word(model, "a dog", edit) is None
    assert word(model, TEXT, edit, kind="style") is None


def test_words_of_several_vectors_and_of_none(model: DiffusionModel) -> None:
    rows = torch.randn(3, 32)
    three, none = (TextEdit({"stark": TokenRows(each, each)}, {}) for each in (rows, rows[:0]))
    assert word(model, "a <stark> dog", three) == (2, 3, 4, 5)
    assert word(model, "a <stark> dog", none) == (2,)  # the class noun itself was taught
    assert word(model, "a <stark>", none) is None


# ---- maps


def test_maps_are_of_the_grid_in_the_middle() -> None:
    assert middle([4096, 1024, 256, 64, 256]) == 256
    assert middle([64, 16, 16]) == 64
    assert middle([16, 16]) == 16


def test_smoothing_keeps_a_constant_and_spreads_a_point() -> None:
    assert torch.allclose(smoothed(torch.full((2, 3, 1), 0.4)), torch.tensor(0.4))
    point = torch.zeros(1, 5, 5)
    point[0, 2, 2] = 1.0
    spread = smoothed(point)[0]
    assert spread.sum().item() == pytest.approx(1.0)
    assert spread[2, 2] / spread[2, 1] == pytest.approx(np.exp(2.0))


def test_a_pass_that_is_watched_predicts_the_same(model: DiffusionModel) -> None:
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor([500, 20])
    with torch.no_grad():
        conditioning = text_kv(model, [Prompt("a dog"), Prompt("a cat")])
        assert not isinstance(conditioning.attended((8, 8)), Attended)
        watching = replace(conditioning, queries={})
        assert torch.equal(model.predict(noisy, t, watching), model.predict(noisy, t, conditioning))
        found = maps(watching, (8, 8))
        assert torch.equal(found, watched(model, noisy, t, conditioning))
        assert watching.rows([1]).queries is None
        alone = watched(model, noisy[1:], t[1:], conditioning.rows([1]))
    assert torch.allclose(found[1:], alone, atol=1e-6)


# ---- guidance


def test_the_step_shrinks_and_ends_half_way() -> None:
    assert step_size(1.0, 0.0) == 20.0
    assert step_size(0.5, 0.4) == pytest.approx(10.0 * 0.8**0.5)
    assert [step_size(1.0, step / 49) > 0 for step in range(50)] == [True] * 25 + [False] * 25


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_least_attended_word_gains(model: DiffusionModel, scheduler: str, seed: int) -> None:
    """By what the gradient promises, also where latents are larger than what the denoiser reads; the other rows of the
    batch stay as they are.
    """
    solver = build_scheduler(scheduler, model.scheduler_config, 10)
    t = solver.timesteps[0]
    prompt = Prompt(TEXT, ((random_edit(model, size=0.1), 1.0),))
    words = ((5, 6), (8,))
    noise = [
        first_noise(model, Picture(prompt, Prompt(""), each, 4, 5.0, scheduler, 32, 32)) for each in (0, seed)
    ]
    latents = torch.stack(noise) * solver.init_noise_sigma
    with torch.no_grad():
        conditioning = text_kv(model, [Prompt("", negative=True)] * 2 + [prompt] * 2)
        own = conditioning.rows([3])

        def loss(of: Tensor) -> float:
            return float(
                least_attended(watched(model, solver.scale_model_input(of[1:], t), t, own)[0], words)
            )

        slope = float(gradient(model, solver.scale_model_input(latents[1:], t), t, own, words).norm())
        asked = [None, AttentionGuidance(0.05 / (20.0 * slope), words)]
        then = moved(model, solver, latents, t, conditioning=conditioning, asked=asked, progress=0.0)
        gain = loss(latents) - loss(then)
        assert 0.7 * 0.05 * slope < gain < 1.3 * 0.05 * slope
        assert torch.equal(then[0], latents[0])
        late = moved(model, solver, latents, t, conditioning=conditioning, asked=asked, progress=0.6)
    assert late is latents


def test_off_is_the_picture_without_it(model: DiffusionModel, weights: Any) -> None:
    """To the byte, also beside a picture that is guided; and the base model is untouched."""
    plain = replace(UNIT, weights=((weights, 1.0),))
    before = everything(model)
    off, on = drawn(
        model, replace(plain, attention_guidance=0.0), replace(plain, index=1, attention_guidance=10.0)
    )
    assert np.array_equal(off, drawn(model, plain, replace(plain, index=1))[0])
    assert np.abs(off - on).max() > 3
    assert same(before, everything(model))


@pytest.mark.parametrize("scheduler", ["dpmsolver++", "euler"])
def test_neighbours_do_not_matter(model: DiffusionModel, weights: Any, scheduler: str) -> None:
    guided = replace(UNIT, weights=((weights, 1.0),), scheduler=scheduler, attention_guidance=0.5)
    wanted = [
        guided,
        replace(guided, index=1, seed=5, attention_guidance=1.0, text="a <stark> dog in the snow"),
        replace(guided, index=2, seed=6, attention_guidance=0.0),
        replace(guided, index=3, guidance_scale=1.0),
    ]
    together = drawn(model, *wanted)
    for unit, beside in zip(wanted, together, strict=True):
        assert np.abs(drawn(model, unit)[0] - beside).max() <= 2


def test_attention_can_be_guided_to_some_of_the_concepts(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    both = teach(model, [stark(photos), ConceptExamples("mimi", "cat", "subject", photos)], tmp_path)
    unit = replace(UNIT, text="a <stark> dog on a <mimi> cat", weights=((both, 1.0),), attention_guidance=5.0)

    def words(*attended: str, unit: GenerationUnit = unit) -> Any:
        [made] = pictures(model, [replace(unit, attended=attended or None)])
        assert made.attention is not None
        return made.attention.words

    everyone = words()
    assert len(everyone) == 2
    assert {words("stark"), words("mimi")} == {everyone[:1], everyone[1:]}
    assert words("mimi", "stark") == everyone
    alone = replace(unit, text="a <stark> dog on a cat")
    assert words("stark", "mimi", unit=alone) == words(unit=alone)
    with pytest.raises(InputInvalid, match="names no subject"):
        words("mimi", unit=alone)
    to_all, to_one = drawn(model, unit)[0], drawn(model, replace(unit, attended=("stark",)))[0]
    assert np.abs(to_all - to_one).max() > 0


def test_a_guided_picture_can_be_cancelled(model: DiffusionModel, weights: Any) -> None:
    seen: list[int] = []

    def count(unit: str, done: int, total: int, metrics: dict[str, float]) -> None:
        seen.append(done)
        run.request = "cancel" if done == 2 else None

    run = InProcessRun(on_step=count)
    with pytest.raises(Cancelled):
        drawn(model, replace(UNIT, weights=((weights, 1.0),), attention_guidance=1.0), run=run)
    assert seen == [1, 2]
    assert torch.is_grad_enabled()


def test_pictures_without_somebody_to_attend_to_are_refused(model: DiffusionModel, weights: Any) -> None:
    nobody = replace(UNIT, text="a photo of a dog", weights=((weights, 1.0),), attention_guidance=1.0)
    with pytest.raises(InputInvalid, match="names no subject"):
        drawn(model, nobody)
    inside = RegionUnit("a <stark> dog", Box(0, 0, 0.5, 1), ((weights, 1.0),))
    boxed = replace(UNIT, weights=((weights, 1.0),), regions=(inside,), attention_guidance=1.0)
    with pytest.raises(InputInvalid, match="boxes"):
        drawn(model, boxed)
