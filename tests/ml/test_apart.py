"""Boxes drawn apart: what is moved where, identities, batches, and that the base that ships puts things there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ml.teaching import everything, same, stark, teach
from worker.ml.conditioning import Conditioning, Prompt, text_kv
from worker.ml.evaluation.panel import Panel, load_panel
from worker.ml.evaluation.presence import crop
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.regions import BaseShare, Box
from worker.ml.run import InProcessRun
from worker.ml.sampling.apart import SINGLE, ApartPasses, moved_to_single
from worker.ml.sampling.engine import GenerationUnit, RegionUnit, generate
from worker.ml.sampling.latents import ConditioningCache, Picture, sample_latents
from worker.ml.sampling.regions import RegionPrompt

BASE = Path(__file__).resolve().parents[2] / "worker/base_models/toyworld"
FULL, ABOVE, BELOW = Box(0, 0, 1, 1), Box(0, 0, 1, 0.5), Box(0, 0.5, 1, 0.5)
CORNER = Box(0.6, 0, 0.4, 0.4)
BEACH, DOG, CAT = (Prompt(text) for text in ("on the beach", "a dog on the beach", "a cat on the beach"))
NOTHING = Prompt("", negative=True)
PICTURE = Picture(BEACH, NOTHING, 3, 4, 5.0, "ddim", 32, 32)
UNIT = GenerationUnit(0, "on the beach", "", 11, 3, 5.0, "ddim", 32, 32)


def apart(*inside: tuple[Prompt, Box], **changes: Any) -> Picture:
    regions = tuple(RegionPrompt(prompt, NOTHING, box) for prompt, box in inside)
    return replace(PICTURE, regions=regions, apart=True, **changes)


def latents(model: DiffusionModel, *drawn: Picture) -> list[Tensor]:
    found = dict(sample_latents(model, drawn, InProcessRun(), "images"))
    return [found[place] for place in range(len(drawn))]


@pytest.mark.parametrize(
    ("box", "moved"),
    [
        (FULL, (0, 0)),
        (Box(0, 0, 0.5, 1), (0, 15)),
        (Box(0.5, 0, 0.5, 1), (0, -15)),
        (ABOVE, (12, 0)),
        (BELOW, (-8, 0)),
        (Box(0.2, 0, 0.8, 0.5), (12, 0)),
        (Box(0.4, 0, 0.6, 0.5), (12, -9)),
    ],
)
def test_a_box_is_moved_no_further_than_a_thing_needs(box: Box, moved: tuple[int, int]) -> None:
    assert moved_to_single(box, (40, 60)) == moved


@pytest.mark.parametrize("box", [CORNER, Box(0, 0, 0.5, 0.5), Box(0.1, 0.55, 0.3, 0.4)])
def test_the_middle_of_a_small_box_comes_to_where_a_single_thing_stands(box: Box) -> None:
    size = (40, 60)
    marked = torch.zeros(size)
    row, column = int((box.y + box.height / 2) * size[0]), int((box.x + box.width / 2) * size[1])
    marked[row, column] = 1.0
    moved = torch.roll(marked, moved_to_single(box, size), (0, 1))
    assert [int(each) for each in moved.nonzero()[0]] == pytest.approx(
        [SINGLE[1] * 40, SINGLE[0] * 60], abs=1
    )


def test_one_box_over_all_is_its_own_picture(model: DiffusionModel) -> None:
    alone = replace(PICTURE, prompt=DOG)
    ours, expected, ground = latents(model, apart((DOG, FULL)), alone, PICTURE)
    assert torch.allclose(ours, expected, atol=1e-4)
    assert not torch.allclose(ours, ground, atol=0.05)


def test_share_one_is_the_ground(model: DiffusionModel) -> None:
    whole = apart((DOG, ABOVE), (CAT, BELOW), share=BaseShare(1.0, 1.0))
    assert torch.allclose(latents(model, whole)[0], latents(model, PICTURE)[0], atol=1e-4)


def test_a_step_is_the_written_formula(model: DiffusionModel) -> None:
    """Overlapping boxes share a place; each pass sees the latents moved and is moved back."""
    picture = apart(
        (DOG, ABOVE), (CAT, Box(0.25, 0.25, 0.5, 0.5)), guidance_scale=1.0, share=BaseShare(0.3, 0.3)
    )
    noisy, ground = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).unbind()
    t = torch.full((1,), 500)
    passes = ApartPasses(model, [picture])
    with torch.no_grad():
        passes.condition(ConditioningCache())
        ours = passes.blended(ground, noisy, t, 0.0)
        boxes = [region.box for region in picture.regions]
        together = (boxes[0].coverage((8, 8)) + boxes[1].coverage((8, 8))).clamp(min=1.0)
        expected = ground.clone()
        for prompt, box in zip((DOG, CAT), boxes, strict=True):
            down, right = moved_to_single(box, (8, 8))
            seen = torch.roll(noisy, (down, right), (2, 3))
            own = torch.roll(model.predict(seen, t, text_kv(model, [prompt])), (-down, -right), (2, 3))
            expected += 0.7 * box.coverage((8, 8)) / together * (own - ground)
    assert moved_to_single(boxes[0], (8, 8)) != (0, 0)
    assert torch.allclose(ours, expected, atol=1e-5)


def test_pictures_of_a_batch_are_moved_by_themselves(model: DiffusionModel) -> None:
    drawn = [apart((DOG, ABOVE), (CAT, BELOW)), apart((CAT, CORNER), (DOG, BELOW), seed=5), PICTURE]
    alone = [latents(model, each)[0] for each in drawn]
    for ours, expected in zip(latents(model, *drawn), alone, strict=True):
        assert torch.allclose(ours, expected, atol=1e-4)


def test_a_picture_that_leaves_takes_its_rows_along(model: DiffusionModel) -> None:
    pair = [apart((DOG, ABOVE)), apart((CAT, CORNER), seed=5)]
    noisy = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    ground, t = torch.zeros(2, 4, 8, 8), torch.full((), 500)
    passes, alone = ApartPasses(model, pair), ApartPasses(model, pair[1:])
    with torch.no_grad():
        passes.condition(ConditioningCache())
        passes.keep([1], [1, 3])
        alone.condition(ConditioningCache())
        ours, expected = (each.blended(ground, noisy[[1, 3]], t, 0.5) for each in (passes, alone))
    assert torch.allclose(ours, expected, atol=1e-5)


def test_a_pass_for_every_box_and_one_for_the_ground(model: DiffusionModel) -> None:
    passes: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            assert conditioning.regions is None
            passes.append(len(noisy))
            return model.predict(noisy, t, conditioning)

    picture = apart((DOG, ABOVE), (CAT, BELOW))
    list(sample_latents(Watched(), [picture], InProcessRun(), "images"))  # type: ignore[arg-type]
    assert passes == [2] * 3 * picture.num_inference_steps


def test_weight_side_concepts_have_their_own_passes(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    before = everything(model)
    loras = [
        teach(model, [stark(photos)], tmp_path, method="lora", seed=seed, learning_rate=0.05)
        for seed in (1, 2)
    ]
    inside = [((weights, 1.0),) for weights in loras]

    def drawn(*regions: RegionUnit) -> Any:
        unit = replace(UNIT, regions=regions, apart=True)
        ((_, pixels),) = generate(model, [unit], InProcessRun())
        return pixels.astype(int)

    first = drawn(
        RegionUnit("a <stark> dog", ABOVE, inside[0]), RegionUnit("a <stark> dog", BELOW, inside[1])
    )
    other = drawn(
        RegionUnit("a <stark> dog", ABOVE, inside[1]), RegionUnit("a <stark> dog", BELOW, inside[1])
    )
    plain = drawn(RegionUnit("a dog", ABOVE), RegionUnit("a <stark> dog", BELOW, inside[1]))
    for changed in (other, plain):
        difference = np.abs(first - changed).mean(axis=(1, 2))
        assert difference[:12].mean() > 2 * difference[20:].mean()
    assert same(before, everything(model))


@contextmanager
def shipped() -> Iterator[tuple[DiffusionModel, Panel]]:
    yield load_base(BASE, torch.device("cpu")), load_panel(BASE, [])


def test_the_base_that_ships_puts_a_cat_above_a_guitar() -> None:
    """Boxes above one another are far from its own layout: in one pass hardly anything becomes a cat there."""
    with shipped() as (base, panel):
        texts = panel.text_features(["a photo of a cat", "a photo of a guitar"])

        def read(together: bool) -> list[float]:
            inside = ("cat and a cat", "guitar and a guitar") if together else ("cat", "guitar")
            regions = tuple(
                RegionUnit(f"a photo of a {noun} in the snow", box)
                for noun, box in zip(inside, (ABOVE, BELOW), strict=True)
            )
            text = "a photo of a cat and a guitar in the snow" if together else "a photo in the snow"
            units = [
                GenerationUnit(
                    place,
                    text,
                    "",
                    201 + place,
                    12,
                    5.0,
                    "dpmsolver++",
                    64,
                    64,
                    (),
                    regions,
                    apart=not together,
                )
                for place in range(3)
            ]
            found = []
            for _, pixels in generate(base, units, InProcessRun()):
                picture = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1.0
                above = torch.nn.functional.interpolate(crop(picture, ABOVE), size=(64, 64))
                cat, guitar = (panel.image_text_features(above) @ texts.T)[0].tolist()
                found.append(cat - guitar)
            return found

        apart_, together = read(together=False), read(together=True)
    assert min(apart_) > 0.2, apart_
    assert np.mean(apart_) > np.mean(together) + 0.1, (apart_, together)
