"""The harness: measures of hand-made sights, texts that reach judge and model, and real weights of a tiny base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.schemas.evaluations import STYLE_PROMPTS
from tests.ml.evaluation.tiny_judges import write_clip, write_dinov2
from tests.ml.teaching import everything, same, stark, teach
from worker.ml.errors import InputInvalid
from worker.ml.evaluation import protocol
from worker.ml.evaluation.measures import (
    Plan,
    Sight,
    Sights,
    Sitting,
    Target,
    draw,
    grade,
    photo_pixels,
    sight,
)
from worker.ml.evaluation.panel import Panel, load_panel
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS
from worker.ml.run import InProcessRun

PLAN = Plan(("a photo of {} on the beach", "a photo of a {} in the snow"), (101, 102, 103), 2)
STARK = Target("stark", "dog")


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    root = tmp_path_factory.mktemp("judges")
    return load_panel(Path("unused"), [write_clip(root / "clip"), write_dinov2(root / "dino")])


def rows(count: int, seed: int, width: int = 24) -> NDArray[np.floating]:
    drawn = np.random.default_rng(seed).standard_normal((count, width))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def blended(one: NDArray[np.floating], other: NDArray[np.floating], share: float) -> NDArray[np.floating]:
    mixed = (1 - share) * one + share * other
    found: NDArray[np.floating] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return found


def seen(base: Sight, own: Sight | None = None, others: Sight | None = None) -> Sights:
    again = Sight(rows(6, 8), rows(6, 9))
    return Sights(base, again, own or base, others or base)


@pytest.fixture
def sitting(model: DiffusionModel, panel: Panel) -> Sitting:
    return Sitting(model, panel, PLAN, InProcessRun())


BASE = Sight(rows(6, 1), rows(6, 2))
PHOTOS = Sight(rows(4, 3), blended(np.repeat(rows(1, 4), 4, 0), rows(4, 5), 0.3))


def test_the_class_alone_is_zero_and_the_subject_itself_is_one(sitting: Sitting) -> None:
    nothing_learned = grade(sitting, STARK, seen(BASE), PHOTOS)
    assert nothing_learned.subject_similarity.value == pytest.approx(0.0, abs=1e-6)
    assert nothing_learned.prompt_similarity.raw == pytest.approx(nothing_learned.prompt_similarity.one)
    true = Sight(rows(4, 6), blended(np.repeat(rows(1, 4), 4, 0), rows(4, 7), 0.3))
    copied = seen(BASE, own=Sight(BASE.image_text, np.concatenate([true.subject, true.subject[:2]])))
    copied = replace(copied, own=Sight(rows(6, 1), true.subject[[0, 1, 2, 3, 0, 1]]))
    against_true = grade(sitting, STARK, copied, PHOTOS, true).subject_similarity
    assert against_true.one == pytest.approx(protocol.mean_pairwise_cosine(true.subject, PHOTOS.subject))
    among = grade(sitting, STARK, copied, PHOTOS).subject_similarity
    pairs = [float(PHOTOS.subject[i] @ PHOTOS.subject[j]) for i in range(4) for j in range(4) if i != j]
    assert among.one == pytest.approx(np.mean(pairs), abs=1e-6)
    assert among.raw == pytest.approx(against_true.raw)


def test_value_and_spread_are_over_image_seeds(sitting: Sitting) -> None:
    own = Sight(rows(6, 10), blended(BASE.subject, PHOTOS.subject[[0, 1, 2, 3, 0, 1]], 0.4))
    found = grade(sitting, STARK, seen(BASE, own), PHOTOS).subject_similarity
    assert found.value is not None
    by_hand = []
    for place in range(3):
        mine = own.subject[[place, place + 3]]
        raw = np.mean([[float(a @ b) for a in mine] for b in PHOTOS.subject])
        by_hand.append((raw - found.zero) / (found.one - found.zero))
    assert found.per_seed == pytest.approx(by_hand, abs=1e-5)
    assert found.value == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert found.deviation == pytest.approx(np.std(by_hand, ddof=1), abs=1e-5)
    assert found.half_width_95 == pytest.approx(4.303 * np.std(by_hand, ddof=1) / np.sqrt(3), rel=1e-3)


def test_drift_is_zero_for_the_bases_own_pictures_and_one_for_the_photos(sitting: Sitting) -> None:
    plain = seen(BASE)
    assert grade(
        sitting, STARK, replace(plain, others=plain.base_again), PHOTOS
    ).drift.value == pytest.approx(0)
    photos = Sight(rows(6, 13), rows(6, 14))
    taken_over = replace(plain, others=photos)
    drift = grade(sitting, STARK, taken_over, photos).drift
    assert drift.value == pytest.approx(1)
    assert drift.raw == pytest.approx(protocol.kid(photos.image_text, BASE.image_text))
    assert drift.zero == pytest.approx(protocol.kid(plain.base_again.image_text, BASE.image_text))


def test_a_judge_that_sees_no_difference_gives_no_value(sitting: Sitting) -> None:
    blind = Sight(BASE.image_text, np.repeat(rows(1, 4), 6, 0))
    photos = Sight(PHOTOS.image_text, np.repeat(rows(1, 4), 4, 0))
    found = grade(sitting, STARK, seen(blind), photos).subject_similarity
    assert (found.value, found.deviation, found.per_seed) == (None, None, [])
    assert found.raw == pytest.approx(1.0)


def test_a_style_is_compared_by_the_whole_picture(sitting: Sitting) -> None:
    style = Target("ink", "", "style")
    plan = replace(PLAN, prompts=STYLE_PROMPTS[:2])
    found = grade(replace(sitting, plan=plan), style, seen(BASE), PHOTOS).subject_similarity
    assert found.zero == pytest.approx(protocol.mean_pairwise_cosine(BASE.image_text, PHOTOS.image_text))


def test_too_little_to_measure_is_an_error(sitting: Sitting) -> None:
    alone = Sight(PHOTOS.image_text[:1], PHOTOS.subject[:1])
    with pytest.raises(InputInvalid, match="two photos"):
        grade(sitting, STARK, seen(BASE), alone)
    with pytest.raises(InputInvalid, match="two prompts"):
        grade(replace(sitting, plan=replace(PLAN, prompts=PLAN.prompts[:1])), STARK, seen(BASE), PHOTOS)


@pytest.mark.parametrize(
    ("target", "prompt", "own", "plain"),
    [
        (STARK, "a photo of {} on the beach", "a photo of <stark> dog on the beach", "a photo of a dog on the beach"),
        (STARK, "a {} in the snow", "a <stark> dog in the snow", "a dog in the snow"),
        (Target("mia", "owl"), "{} at night", "<mia> owl at night", "an owl at night"),
        (Target("ink", "", "style"), "a dog in the style of {}", "a dog in the style of <ink> art", "a dog"),
        (Target("ink", "prints", "style"), "{} of a cat", "<ink> prints of a cat", "art of a cat"),
    ],
)  # fmt: skip
def test_what_the_model_and_the_judge_read(target: Target, prompt: str, own: str, plain: str) -> None:
    assert (target.own(prompt), target.plain(prompt)) == (own, plain)


@pytest.mark.parametrize("method", ["custom-diffusion", "dreambooth"])
def test_real_weights_of_either_side(
    model: DiffusionModel, panel: Panel, photos: list[Path], tmp_path: Path, method: str
) -> None:
    """Pictures come from the plain engine, the model is as it was, and what is kept is not drawn again."""
    weights = teach(model, [stark(photos)], tmp_path, method=method)
    before = everything(model)
    kept: dict[str, Sight] = {}

    def keep(name: str, make: object) -> Sight:
        if name not in kept:
            kept[name] = make()  # type: ignore[operator]
        return kept[name]

    shown: list[tuple[str, int, Tensor]] = []
    sitting = Sitting(
        model,
        panel,
        PLAN,
        InProcessRun(),
        keep,
        lambda which, place, pixels: shown.append((which, place, pixels)),
    )
    edit, installation = METHODS[method].edit(model, weights), METHODS[method].installation(model, weights)
    installed = ((installation, 1.0),) if installation else ()

    def whole(sitting: Sitting) -> Sights:
        return Sights(*sitting.base(STARK), *sitting.taught(STARK, edit, installed, "one"))

    first = whole(sitting)
    assert [(which, place) for which, place, _ in shown] == [
        (which, place) for which in ("base", "again", "own", "others") for place in (0, 1)
    ]
    pixels = draw(
        model, PLAN, [STARK.own(PLAN.prompts[1])], InProcessRun(), edit=edit, installation=installed
    )
    assert torch.equal(pixels, shown[5][2])
    assert not torch.equal(shown[1][2], shown[5][2])
    assert np.array_equal(first.own.subject[3:], sight(panel, pixels).subject)
    count = len(shown)
    again = whole(sitting)
    assert len(shown) == count
    assert np.array_equal(again.others.image_text, first.others.image_text)
    grades = grade(sitting, STARK, first, sight(panel, photo_pixels(photos, 32)))
    assert len(grades.drift.per_seed) in (0, 3)
    assert same(before, everything(model))


def test_photos_are_centre_squares_in_range(photos: list[Path]) -> None:
    pixels = photo_pixels(photos, 32)
    assert pixels.shape == (3, 3, 32, 32)
    assert -1 <= float(pixels.min()) < float(pixels.max()) <= 1
