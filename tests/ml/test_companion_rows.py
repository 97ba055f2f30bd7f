"""Companions in a training: which rows show them, what is preserved, refusing and resuming; by every method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.schemas.methods import CARDS
from backend.schemas.prior_images import CHUNK
from tests.ml.teaching import TINY, prepare, stark, teach
from tests.ml.test_companions import NOUNS, OF_STARK, naming
from tests.ml.test_retrieval import add, picture
from worker.ml.conditioning import TextEdit
from worker.ml.errors import PromptTooLong
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import ConceptExamples
from worker.ml.run import InProcessRun, Released
from worker.ml.training.companions import VIEWS_PER_PICTURE
from worker.ml.training.dataset import PHOTOS_TOGETHER
from worker.ml.training.lessons import Lesson, deal_lessons, prepare_lessons
from worker.ml.training.loop import Progress, advance
from worker.ml.training.trainee import Rows

WITH_COMPANIONS = [name for name, card in CARDS.items() if "companions" in card.params_type.model_fields]


@pytest.fixture(scope="module")
def base(model: DiffusionModel) -> DiffusionModel:
    """The tiny base, which names what it knows."""
    return naming(model, NOUNS)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prior")


def taught(base: DiffusionModel, concepts: Sequence[ConceptExamples], prior: Path) -> list[Lesson]:
    return prepare_lessons(
        base,
        concepts,
        augment=False,
        flip=True,
        prior_images=4,
        prior_steps=2,
        seed=7,
        prior_dir=prior,
        run=InProcessRun(),
        companions=0.4,
    )


def dealt(lessons: Sequence[Lesson], step: int, share: float, batch_size: int = 4) -> Rows:
    return deal_lessons(
        lessons, batch_size=batch_size, seed=7, step=step, edit=TextEdit({}, {}), companions=share
    )


def texts(rows: Rows) -> list[str]:
    return [rows.prompts[place].text for place in rows.prompt_of_row]


# ---- rows


def test_companions_replace_a_share_of_the_rows_and_nothing_else(
    base: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """Jointly with a second concept whose class is one of the companions: each is called by its own word."""
    wolf = ConceptExamples("wolf", "cat", "subject", photos[:2])
    lessons = taught(base, [stark(photos), wolf], prior)
    known = {lesson.concept.token: lesson.companions for lesson in lessons}
    shown = dict.fromkeys((False, True), 0)
    for step in range(60):
        without, rows = dealt(lessons, step, 0.0), dealt(lessons, step, 0.4)
        assert (rows.prior, rows.tokens) == (without.prior, without.tokens)
        for row, (text, before) in enumerate(zip(texts(rows), texts(without), strict=True)):
            found = known[rows.tokens[row]]
            assert found is not None
            assert found.prior is not None
            bank, captions = (
                (found.prior.latents, found.prior.captions)
                if rows.prior[row]
                else (found.latents, found.captions)
            )
            if text not in captions:
                assert text == before
                assert torch.equal(rows.latents[row], without.latents[row])
                assert torch.equal(rows.masks[row], without.masks[row])
                continue
            shown[rows.prior[row]] += 1
            [entry] = [at for at, latent in enumerate(bank) if torch.equal(latent, rows.latents[row])]
            assert captions[entry] == text
            assert torch.equal(
                rows.masks[row], torch.ones(1, 8, 8) if rows.prior[row] else found.masks[entry]
            )
            assert ("<" in text) is not rows.prior[row]
    for prior_rows, count in shown.items():  # 120 pairs of each kind at 0.4: 48, and three sigma are 16
        assert 64 <= count <= 128, prior_rows


def test_a_hand_is_of_one_caption(base: DiffusionModel, photos: list[Path], prior: Path) -> None:
    """Photos by two, the prior rows of a concept all or none: text encoders cost by the caption."""
    lessons, places = taught(base, [stark(photos)], prior), set[tuple[int, ...]]()
    for step in range(40):
        told = texts(dealt(lessons, step, 0.5, batch_size=5))
        hands = [told[0:2], told[2:4], told[4:5], told[5:]]
        assert len(hands[0]) == PHOTOS_TOGETHER
        for hand in hands:
            among = [text for text in hand if " and a" in text]
            assert among in ([], hand)
            assert len(set(among)) <= 1
        places.add(tuple(at for at, hand in enumerate(hands) if " and a" in hand[0]))
    assert len(places) > 8


@pytest.mark.parametrize(
    ("prior", "options"),
    [
        ("generated", {}),
        ("generated", {"prior_images": 0}),
        ("generated", {"prior_weight": 0.0}),
        ("prediction", {}),
        ("folder", {}),
        ("none", {}),
    ],
)
def test_their_pictures_are_preserved_beside_other_generated_ones_only(
    base: DiffusionModel, photos: list[Path], tmp_path: Path, prior: Any, options: dict[str, Any]
) -> None:
    for number in range(3):
        add(tmp_path, f"p{number}", "photo of a dog", picture(number))
    trainee = prepare(base, [stark(photos)], tmp_path, prior=prior, companions=0.9, **options)
    among = {True: False, False: False}
    for step in range(8):
        rows = trainee.rows(step)
        for text, is_prior in zip(texts(rows), rows.prior, strict=True):
            among[is_prior] |= " and a" in text
    assert among == {False: True, True: prior == "generated" and not options}


def test_a_category_taught_by_its_plain_name_has_none(
    base: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    trainee = prepare(base, [stark(photos)], tmp_path, word="class-noun", companions=0.9)
    assert not any(" and a" in text for step in range(8) for text in texts(trainee.rows(step)))


# ---- training


@pytest.mark.parametrize("method", WITH_COMPANIONS)
def test_a_text_that_is_too_long_is_refused_before_anything_is_drawn(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, method: str
) -> None:
    endless = naming(model, ["dog", "cat", "very " * 30 + "small owl"])
    units = set[str]()
    run = InProcessRun(on_step=lambda unit, *_: units.add(unit))
    with pytest.raises(PromptTooLong):
        prepare(endless, [stark(photos)], tmp_path, method=method, companions=0.3, run=run)
    assert units <= {"spectra"}
    assert not list(tmp_path.iterdir())


def test_every_method_that_makes_collages_takes_companions() -> None:
    with_collages = [name for name, card in CARDS.items() if "collages" in card.params_type.model_fields]
    assert with_collages == WITH_COMPANIONS
    assert len(WITH_COMPANIONS) >= 5
    for name in WITH_COMPANIONS:
        assert CARDS[name].params_type().model_dump()["companions"] == 0.0


@pytest.mark.parametrize("method", WITH_COMPANIONS)
def test_a_step_with_companions_trains(
    base: DiffusionModel, photos: list[Path], prior: Path, method: str
) -> None:
    trainee = prepare(base, [stark(photos)], prior, method=method, prior_weight=1.0, companions=0.9)
    rows = trainee.rows(0)
    assert [text in OF_STARK for text in texts(rows)] == [True, True, False, False]
    assert 0 < rows.masks[:2].sum() < 32
    with trainee.installed():
        progress = Progress(trainee)
        [loss] = advance(base, [progress], InProcessRun())
    assert torch.isfinite(loss.total)
    assert progress.done == 1


@pytest.mark.parametrize(
    "options",
    [{"method": "custom-diffusion", "augment": False}, {"method": "lora", "prior_weight": 1.0}],
    ids=["custom-diffusion", "lora"],
)
@pytest.mark.parametrize(("unit", "count"), [("prior", 3), ("photos", 6), ("train", 4)])
def test_interrupted_and_resumed_is_byte_equal(
    base: DiffusionModel, photos: list[Path], tmp_path: Path, options: dict[str, Any], unit: str, count: int
) -> None:
    """While companions' pictures are drawn, while photos are encoded among them, and between two steps. Prior images
    take two steps before, photos by themselves three.
    """
    options = {**options, "companions": 0.6}
    undisturbed = teach(base, [stark(photos)], tmp_path / "whole", **options).to_bytes()
    seen = list[tuple[str, int]]()

    def on_step(name: str, done: int, total: int, metrics: dict[str, float]) -> None:
        seen.append((name, total))
        first.request = "release" if [each for each, _ in seen].count(unit) == count else None

    first = InProcessRun(tmp_path / "run", on_step=on_step)
    with pytest.raises(Released):
        teach(base, [stark(photos)], tmp_path / "cut", run=first, **options)
    pictures = CHUNK * len(OF_STARK)
    totals = {"prior": 2 * pictures, "photos": VIEWS_PER_PICTURE * pictures, "train": TINY["steps"]}
    assert seen[-1] == (unit, totals[unit])
    last = InProcessRun(tmp_path / "run")
    assert teach(base, [stark(photos)], tmp_path / "cut", run=last, **options).to_bytes() == undisturbed
    without = teach(base, [stark(photos)], tmp_path / "cut", **{**options, "companions": 0.0})
    assert without.to_bytes() != undisturbed
