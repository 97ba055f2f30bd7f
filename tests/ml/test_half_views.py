"""Views for halves of collages: where the subject goes, what is beside it, and who gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ml.teaching import stark
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import ConceptExamples
from worker.ml.run import Cancelled, InProcessRun
from worker.ml.streams import rng
from worker.ml.training.half_views import (
    LARGEST,
    SMALLEST,
    VIEWS_PER_PHOTO,
    HalfDraw,
    build_half_views,
    draw_half,
    half_view,
)
from worker.ml.training.lessons import prepare_lessons
from worker.ml.training.subject_masks import SubjectMasks

SIDE = 64
SQUARE = (8, 20, 40)
"""Left, top and side of the subject in `photo`."""


def photo() -> tuple[Tensor, Tensor]:
    """A white subject with a black left edge on a ground that is dark above and bright below; and its mask."""
    ground = torch.linspace(-1.0, 0.0, SIDE)[:, None].expand(3, SIDE, SIDE).clone()
    left, top, side = SQUARE
    inside = (..., slice(top, top + side), slice(left, left + side))
    ground[inside] = 1.0
    ground[..., top : top + side, left : left + side // 4] = -1.0
    mask = torch.zeros(1, SIDE, SIDE)
    mask[inside] = 1.0
    return ground, mask


def extent(mask: Tensor) -> tuple[int, int, int, int]:
    """Left, right, top and bottom of what is at least half there."""
    rows, columns = ((mask[0] >= 0.5).any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    return columns[0], columns[-1] + 1, rows[0], rows[-1] + 1


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_subject_is_where_it_was_to_be(mirrored: bool) -> None:
    shown, mask = half_view(*photo(), SQUARE, HalfDraw(30, 17, 25, mirrored))
    assert shown.shape == (3, SIDE, SIDE)
    assert mask.shape == (1, SIDE, SIDE)
    assert extent(mask) == pytest.approx((17, 47, 25, 55), abs=1)
    dark, bright = (19, 44) if not mirrored else (44, 19)
    assert float(shown[0, 40, dark]) == pytest.approx(-1.0, abs=0.01)
    assert float(shown[0, 40, bright]) == pytest.approx(1.0, abs=0.01)


def test_beyond_its_edges_the_photo_goes_on_and_does_not_count() -> None:
    whole = torch.ones(1, SIDE, SIDE)
    shown, mask = half_view(photo()[0], whole, SQUARE, HalfDraw(20, 22, 30, mirrored=False))
    seen = extent(mask)
    assert seen == pytest.approx((18, 50, 20, 52), abs=1)
    left, right, top, bottom = seen
    assert bool((shown[:, :top] == shown[:, top : top + 1]).all())
    assert bool((shown[:, bottom:] == shown[:, bottom - 1 : bottom]).all())
    assert bool((shown[..., right:] == shown[..., right - 1 : right]).all())
    assert float(shown[0, 0, 0]) < float(shown[0, -1, 0])
    assert float(mask[..., :left].sum() + mask[..., right:].sum()) == 0.0


def test_a_subject_fits_into_the_middle_half() -> None:
    draws = [draw_half(SIDE, rng(7, "half", number), flip=True) for number in range(200)]
    assert draws == [draw_half(SIDE, rng(7, "half", number), flip=True) for number in range(200)]
    for draw in draws:
        assert SMALLEST * SIDE - 1 <= draw.size_px <= LARGEST * SIDE + 1
        assert draw.left_px >= SIDE // 4
        assert draw.left_px + draw.size_px <= 3 * SIDE // 4 + 1
        assert 0 <= draw.top_px <= SIDE - draw.size_px
    assert len({draw.left_px for draw in draws}) > 3
    assert 50 < sum(draw.mirrored for draw in draws) < 150
    assert not any(draw_half(SIDE, rng(7, "half", number), flip=False).mirrored for number in range(50))


def masks_of(photos: list[Path], size: int) -> SubjectMasks:
    """The left half of every photo."""
    mask = torch.zeros(1, size, size)
    mask[..., : size // 2] = 1.0
    return SubjectMasks(tuple(mask for _ in photos), 0.1)


def test_views_are_a_function_of_photos_masks_and_seed(model: DiffusionModel, photos: list[Path]) -> None:
    size = model.description.resolution
    asked: dict[str, Any] = {"stream": "halves/stark", "flip": True}

    def built(seed: int) -> Any:
        return build_half_views(model, photos, masks_of(photos, size), seed=seed, run=InProcessRun(), **asked)

    first, again, other = built(7), built(7), built(8)
    count = VIEWS_PER_PHOTO * len(photos)
    assert first.latents.shape[0] == first.masks.shape[0] == len(first.prefixes) == count
    assert first.masks.shape[2:] == first.latents.shape[2:]
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.latents, other.latents)
    assert float(first.masks.min()) == pytest.approx(0.1)
    assert float(first.masks.max()) == pytest.approx(1.0)


def test_a_cancelled_training_stops_between_views(model: DiffusionModel, photos: list[Path]) -> None:
    class Impatient(InProcessRun):
        def step(self, phase: str, done: int, total: int, **extra: Any) -> None:
            raise Cancelled

    with pytest.raises(Cancelled):
        build_half_views(
            model, photos, masks_of(photos, 32), seed=7, stream="halves/stark", flip=True, run=Impatient()
        )


@pytest.mark.parametrize(
    ("several", "options", "made"),
    [
        (True, {"collages": 0.6, "unmasked_weight": 0.1}, True),
        (True, {"collages": 0.6}, False),
        (True, {"unmasked_weight": 0.1}, False),
        (False, {"collages": 0.6, "unmasked_weight": 0.1}, False),
    ],
    ids=["masked-collages", "no-masks", "no-collages", "one-concept"],
)
def test_they_are_made_for_masked_collages_alone(
    model: DiffusionModel,
    photos: list[Path],
    tmp_path: Path,
    several: bool,
    options: dict[str, float],
    made: bool,
) -> None:
    concepts = [stark(photos), ConceptExamples("wolf", "dog", "subject", photos[:2])]
    lessons = prepare_lessons(
        model,
        concepts if several else concepts[:1],
        augment=True,
        flip=True,
        prior_images=0,
        prior_steps=2,
        seed=7,
        prior_dir=tmp_path,
        run=InProcessRun(),
        **options,
    )
    assert {lesson.halves is not None for lesson in lessons} == {made}
