"""Subject masks: that the shipped base finds subjects by their nouns, where masks go in views, and what then counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backend.schemas.methods import CARDS
from tests.ml.teaching import stark, teach
from worker.ml.conditioning import Prompt, TextEdit
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import ConceptExamples
from worker.ml.run import Cancelled, InProcessRun
from worker.ml.training.augmentation import SMALL, ZOOMED, Draw, placed, render, square_pixels
from worker.ml.training.lessons import Lesson, deal_lessons, prepare_lessons
from worker.ml.training.subject_masks import SubjectMasks, subject_masks
from worker.ml.word_positions import tokens_before

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "backend/sample_photos"
ON_PLAIN_GROUND = {
    ("rover", "backpack"): "00",
    ("amber", "guitar"): "03",
    ("stark", "dog"): "03",
    ("shelly", "turtle"): "05",
    ("carnival", "umbrella"): "05",
}
"""Photos whose ground is of one colour, so that the subject's outline is known without a model."""


@pytest.fixture(scope="module")
def base() -> DiffusionModel:
    """The one that ships: attention of random weights is the same everywhere."""
    return load_base(ROOT / "worker/base_models/toyworld", torch.device("cpu"))


@pytest.fixture(scope="module")
def dogs() -> list[Path]:
    """Photos of one dog in several places."""
    return [SAMPLES / "stark" / f"{number:02d}.webp" for number in range(3)]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prior")


def outline(photo: Path) -> Tensor:
    """[64, 64] bool: what is not of the ground's colour."""
    with Image.open(photo) as opened:
        pixels = np.asarray(opened.convert("RGB").resize((64, 64)), dtype=np.float32)
    edge = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3)])
    away = np.abs(pixels - np.median(edge, axis=0)).max(axis=2)
    return torch.from_numpy(away > 40)


# ---- where the subject is


@pytest.mark.parametrize(("subject", "number"), list(ON_PLAIN_GROUND.items()))
def test_the_shipped_base_finds_a_subject_that_it_never_saw(
    base: DiffusionModel, subject: tuple[str, str], number: str
) -> None:
    slug, noun = subject
    photo = SAMPLES / slug / f"{number}.webp"
    pixels = [square_pixels(photo, 64)]
    found = subject_masks(
        base, pixels, noun, unmasked_weight=0.0, seed=1, stream="subject", run=InProcessRun()
    )
    [mask] = found.masks
    assert mask.shape == (1, 64, 64)
    assert float(mask.min()) == 0.0
    assert float(mask.max()) == 1.0
    true = outline(photo)
    assert 0.03 < true.float().mean() < 0.6
    inside, around = float(mask[0, true].mean()), float(mask[0, ~true].mean())
    assert inside > 0.6
    assert inside > 4 * around


def test_masks_are_a_pure_function_of_photo_noun_and_seed(base: DiffusionModel, dogs: list[Path]) -> None:
    def found(seed: int, paths: Sequence[Path]) -> tuple[Tensor, ...]:
        size = base.description.resolution
        pixels = [square_pixels(path, size) for path in paths]
        made = subject_masks(
            base, pixels, "dog", unmasked_weight=0.0, seed=seed, stream="subject", run=InProcessRun()
        )
        return made.masks

    both = found(7, dogs[:2])
    assert torch.equal(both[0], found(7, dogs[:1])[0])
    assert not torch.equal(both[0], found(8, dogs[:1])[0])


def test_they_stop_when_the_run_does(base: DiffusionModel, dogs: list[Path]) -> None:
    def on_step(unit: str, done: int, total: int, metrics: dict[str, float]) -> None:
        assert (unit, total) == ("masks", len(dogs))
        run.request = "cancel" if done == 2 else None

    run = InProcessRun(on_step=on_step)
    pixels = [square_pixels(path, base.description.resolution) for path in dogs]
    with pytest.raises(Cancelled):
        subject_masks(base, pixels, "dog", unmasked_weight=0.0, seed=7, stream="subject", run=run)


def test_the_noun_is_found_behind_its_article(base: DiffusionModel) -> None:
    """Also where it takes several tokens."""
    for text, noun in (("photo of an owl", "owl"), ("photo of a teddy bear", "teddy bear")):
        prompt = Prompt(text, ())
        ids = base.token_ids(text, {})
        first, last = (tokens_before(base, prompt, end) for end in (len(text) - len(noun), len(text)))
        begin, end = base.token_ids("", {})[:2]
        assert [begin, *ids[first:last], end] == base.token_ids(noun, {})[: last - first + 2]


# ---- where a mask goes in a view


@pytest.mark.parametrize(
    "draw",
    [
        Draw(64, 0, 0, "", mirrored=False),
        Draw(64, 0, 0, "", mirrored=True),
        Draw(83, 11, 6, ZOOMED[0], mirrored=True),
        Draw(31, 20, 9, SMALL[0], mirrored=False),
    ],
)
def test_a_plane_is_placed_as_its_photo_is(draw: Draw) -> None:
    ramp = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.float32) / 192
    photo = Image.fromarray((255 * ramp).round().astype(np.uint8)).convert("RGB")
    shown = (render(photo, draw, 64, 4).pixels[:1] + 1) / 2
    plane = placed(torch.from_numpy(ramp)[None], draw)
    assert plane.shape == shown.shape
    seen = torch.zeros(64, 64, dtype=torch.bool)
    if draw.size_px < 64:
        inside = slice(draw.top_px + 1, draw.top_px + 30), slice(draw.left_px + 1, draw.left_px + 30)
        assert float(plane.sum()) == pytest.approx(
            float(plane[0, 9:40, 20:51].sum())
        )  # nothing beside the box
    else:
        inside = slice(2, 62), slice(2, 62)
    seen[inside] = True
    torch.testing.assert_close(plane[0][seen], shown[0][seen], atol=0.02, rtol=0)


def on_the_left(unmasked_weight: float, width: int = 32) -> SubjectMasks:
    """The subject fills the left half of the photo."""
    mask = torch.zeros(1, 64, 64)
    mask[..., :width] = 1.0
    return SubjectMasks((mask,), unmasked_weight)


def test_what_is_beside_the_subject_counts_less() -> None:
    whole, as_it_is = torch.ones(1, 16, 16), Draw(64, 0, 0, "", mirrored=False)
    found = on_the_left(0.25).weighed(whole, 0, as_it_is)
    assert torch.equal(found[..., :8], torch.ones(1, 16, 8))
    assert torch.equal(found[..., 8:], torch.full((1, 16, 8), 0.25))
    mirrored = on_the_left(0.25).weighed(whole, 0, Draw(64, 0, 0, "", mirrored=True))
    assert torch.equal(mirrored, found.flip(-1))


def test_what_did_not_count_still_does_not() -> None:
    box = torch.zeros(1, 16, 16)
    box[:, 4:10, 6:12] = 1.0
    found = on_the_left(0.5).weighed(box, 0, Draw(32, 20, 12, SMALL[0], mirrored=False))
    assert bool(((found > 0) == (box > 0)).all())
    assert float(found.max()) == 1.0
    assert float(found[box > 0].min()) == 0.5


def test_a_view_without_its_subject_counts_as_it_is() -> None:
    """A mean over nothing would be no number."""
    missed = Draw(128, 64, 0, ZOOMED[0], mirrored=False)
    whole = torch.ones(1, 16, 16)
    assert torch.equal(on_the_left(0.0, width=24).weighed(whole, 0, missed), whole)


@pytest.mark.parametrize(
    ("box", "square"),
    [
        ((20, 30, 40, 40), (17, 22, 25)),  # left, top, right, bottom of the subject; left, top, side
        ((0, 0, 10, 50), (0, 0, 62)),
        ((4, 0, 64, 64), (0, 0, 64)),
        ((0, 0, 0, 0), (0, 0, 64)),
    ],
)
def test_a_close_up_is_the_square_around_the_subject(
    box: tuple[int, int, int, int], square: tuple[int, int, int]
) -> None:
    left, top, right, bottom = box
    mask = torch.zeros(1, 64, 64)
    mask[:, top:bottom, left:right] = 1.0
    photo = np.zeros((128, 128, 3), np.uint8)
    photo[2 * top : 2 * bottom, 2 * left : 2 * right] = 255
    [shown], closer = SubjectMasks((mask,), 0.1).close_up([Image.fromarray(photo)])
    assert shown.size == (2 * square[2], 2 * square[2])
    assert closer.unmasked_weight == 0.1
    expected = torch.from_numpy(np.asarray(shown.resize((64, 64)))[..., 0] / 255)
    assert float((closer.masks[0][0] - expected).abs().mean()) < 0.02
    before = photo[2 * square[1] : 2 * (square[1] + square[2]), 2 * square[0] : 2 * (square[0] + square[2])]
    assert np.array_equal(np.asarray(shown), before)


# ---- what then counts in a training


def taught(
    base: DiffusionModel, concepts: Sequence[ConceptExamples], prior: Path, **options: Any
) -> list[Lesson]:
    return prepare_lessons(
        base,
        concepts,
        augment=False,
        flip=False,
        prior_images=4,
        prior_steps=2,
        seed=7,
        prior_dir=prior,
        run=InProcessRun(),
        **options,
    )


def test_banks_and_companions_have_the_masks(base: DiffusionModel, dogs: list[Path], prior: Path) -> None:
    [whole] = taught(base, [stark(dogs)], prior, companions=0.4)
    [masked] = taught(base, [stark(dogs)], prior, companions=0.4, unmasked_weight=0.1)
    assert torch.equal(masked.bank.latents, whole.bank.latents)
    assert bool((whole.bank.masks == 1).all())
    assert 0.1 <= float(masked.bank.masks.min()) < 0.5
    assert float(masked.bank.masks.max()) > 0.9
    assert whole.companions is not None
    assert masked.companions is not None
    assert bool((masked.companions.masks <= whole.companions.masks + 1e-6).all())
    assert float(masked.companions.masks.sum()) < float(whole.companions.masks.sum())


@pytest.mark.parametrize(
    ("concept", "options"),
    [
        ({"kind": "style"}, {}),
        ({"class_noun": ""}, {}),
        ({"class_noun": "moongate"}, {}),
        ({}, {"new_category": True}),
        ({}, {"unmasked_weight": 1.0}),
    ],
    ids=["style", "nameless", "unknown-noun", "new-category", "off"],
)
def test_without_a_noun_that_the_base_knows_photos_are_learned_whole(
    base: DiffusionModel,
    dogs: list[Path],
    prior: Path,
    concept: dict[str, Any],
    options: dict[str, Any],
) -> None:
    told = ConceptExamples(
        **{"token": "stark", "class_noun": "dog", "kind": "subject", "photos": dogs, **concept}
    )
    [lesson] = taught(base, [told], prior, **{"unmasked_weight": 0.0, **options})
    assert bool((lesson.bank.masks == 1).all())


def test_a_collage_has_half_of_each_mask(base: DiffusionModel, dogs: list[Path], prior: Path) -> None:
    wolf = ConceptExamples("wolf", "cat", "subject", dogs[:2])
    lessons = taught(base, [stark(dogs), wolf], prior, unmasked_weight=0.0)
    seen = 0
    for step in range(20):
        rows = deal_lessons(lessons, batch_size=4, seed=7, step=step, edit=TextEdit({}, {}), collages=0.9)
        width = rows.masks.shape[-1]
        for row, (left, right) in rows.sides.items():
            banks = {lesson.concept.token: lesson.bank for lesson in lessons}
            halves = zip((left, right), (slice(0, width // 2), slice(width // 2, width)), strict=True)
            for token, part in halves:
                bank, middle = banks[token], slice(width // 4, width // 4 + width // 2)
                shown = (bank.latents[..., middle] == rows.latents[row][..., part]).flatten(1).all(1)
                [entry] = shown.nonzero().flatten().tolist()[:1]
                assert torch.equal(rows.masks[row][..., part], bank.masks[entry][..., middle])
            seen += 1
        for row, of_prior in enumerate(rows.prior):
            assert not of_prior or bool((rows.masks[row] == 1).all())
    assert seen > 20


@pytest.mark.parametrize("method", sorted(CARDS))
def test_every_method_takes_it_and_learns_something_else(
    base: DiffusionModel, dogs: list[Path], prior: Path, method: str
) -> None:
    assert CARDS[method].params_type().model_dump()["unmasked_weight"] == 1.0
    whole, masked = (
        teach(base, [stark(dogs)], prior, method=method, unmasked_weight=weight) for weight in (1.0, 0.0)
    )
    assert whole.tensors.keys() == masked.tensors.keys()
    assert any(not torch.equal(tensor, masked.tensors[name]) for name, tensor in whole.tensors.items())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in masked.tensors.values())
