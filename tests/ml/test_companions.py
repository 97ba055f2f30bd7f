"""Companions: where photos are pasted, what counts, what captions say, and in which rows they come."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from backend.schemas.methods import CARDS
from tests.ml.teaching import TINY, prepare, stark, teach
from tests.ml.test_retrieval import add, picture
from worker.ml.conditioning import TextEdit
from worker.ml.errors import PromptTooLong
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import InProcessRun, Released, Run
from worker.ml.streams import rng
from worker.ml.training.augmentation import Draw
from worker.ml.training.companions import (
    COMPANIONS,
    LARGEST,
    SMALLEST,
    VIEWS_PER_PICTURE,
    Companions,
    Company,
    build_companions,
    companies,
    companion_texts,
    pasted,
    place_draw,
)
from worker.ml.training.dataset import PHOTOS_TOGETHER
from worker.ml.training.lessons import Lesson, deal_lessons, prepare_lessons
from worker.ml.training.loop import Progress, advance
from worker.ml.training.prior import CHUNK
from worker.ml.training.trainee import Rows

NOUNS = ["dog", "cat", "owl", "teapot"]
EXAMPLES = ["photo of {} on the beach", "photo of the {}", "photo of {} in snow"]
OF_STARK = {
    "photo of a <stark> dog and a cat on the beach": "photo of a dog and a cat on the beach",
    "photo of an owl and a <stark> dog in snow": "photo of an owl and a dog in snow",
    "photo of a <stark> dog and a teapot on the beach": "photo of a dog and a teapot on the beach",
}
WITH_COMPANIONS = [name for name, card in CARDS.items() if "companions" in card.params_type.model_fields]


@pytest.fixture(scope="module")
def base(model: DiffusionModel) -> DiffusionModel:
    """The tiny base, which names what it knows."""
    return naming(model, NOUNS)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prior")


def naming(model: DiffusionModel, nouns: list[str]) -> DiffusionModel:
    known = copy.copy(model)
    said = {"class_nouns": nouns, "example_prompts": EXAMPLES}
    known.description = model.description.model_copy(update=said)  # type: ignore[misc]
    return known


def concept(photos: Sequence[Path] = (), noun: str = "dog", **other: Any) -> ConceptExamples:
    return ConceptExamples(
        **{"token": "stark", "kind": "subject", **other}, class_noun=noun, photos=[*photos]
    )


def built(
    base: DiffusionModel, photos: Sequence[Path], prior: Path, seed: int = 7, run: Run | None = None
) -> Companions:
    found = build_companions(
        base,
        concept(photos),
        preserve=True,
        prior_steps=2,
        flip=True,
        seed=seed,
        cache_dir=prior,
        run=run or InProcessRun(),
    )
    assert found is not None
    return found


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


# ---- captions


def test_sides_and_places_change_from_companion_to_companion() -> None:
    """Named from left to right; an example with an article of its own has no room for two."""
    assert companies(concept(), NOUNS, EXAMPLES) == [
        Company(caption, plain, left)
        for (caption, plain), left in zip(OF_STARK.items(), (True, False, True), strict=True)
    ]


def test_companions_are_few_other_things_from_all_of_the_list() -> None:
    nouns = [f"thing{number}" for number in range(20)]
    found = companies(concept(noun="Thing3"), nouns, [])
    assert [company.plain for company in found[:2]] == [
        "photo of a Thing3 and a thing0",
        "photo of a thing2 and a Thing3",
    ]
    assert len({company.plain for company in found}) == len(found) == COMPANIONS
    assert "thing15" in found[-1].plain
    assert not any("thing3" in company.plain for company in companies(concept(noun="Thing3"), nouns[:6], []))


@pytest.mark.parametrize(
    ("taught", "nouns"),
    [
        (concept(kind="style"), NOUNS),
        (concept(noun=""), NOUNS),
        (concept(), []),
        (concept(), ["Dog"]),
    ],
)
def test_without_a_place_a_class_or_another_thing_there_are_none(
    model: DiffusionModel, taught: ConceptExamples, nouns: list[str], tmp_path: Path
) -> None:
    assert companies(taught, nouns, EXAMPLES) == []
    made = build_companions(
        naming(model, nouns),
        taught,
        preserve=True,
        prior_steps=2,
        flip=True,
        seed=7,
        cache_dir=tmp_path,
        run=InProcessRun(),
    )
    assert made is None
    assert not list(tmp_path.iterdir())


def test_every_text_is_known_before_anything_is_drawn(base: DiffusionModel) -> None:
    assert sorted(companion_texts(base, [concept()], 0.3)) == sorted([*OF_STARK, *OF_STARK.values()])
    assert companion_texts(base, [concept()], 0.0) == []


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


# ---- pictures


@pytest.mark.parametrize("size", [32, 64, 512])
def test_a_photo_stands_in_its_half_and_within_the_picture(size: int) -> None:
    draws = [
        (left, place_draw(size, left, rng(0, "place", number), flip=True))
        for number in range(100)
        for left in (True, False)
    ]
    for left, draw in draws:
        assert round(SMALLEST * size) <= draw.size_px <= round(LARGEST * size)
        for start in (draw.left_px, draw.top_px):
            assert 0 <= start <= size - draw.size_px
        assert (draw.left_px + draw.size_px / 2 < size / 2) == left
        assert draw.top_px + draw.size_px / 2 >= size / 2 - 1
    assert {draw.mirrored for _, draw in draws} == {True, False}
    assert len({draw.left_px for _, draw in draws}) > 4
    assert not any(place_draw(size, True, rng(0, "place", n), flip=False).mirrored for n in range(20))


def test_only_the_box_less_a_cell_counts_and_the_picture_stays_around_it() -> None:
    """Rows 2 to 5 and columns 1 to 4 of 8 x 8 cells are covered, and the outer ones of them do not count."""
    under = torch.linspace(-1, 1, 3 * 32 * 32).view(3, 32, 32)
    pixels, mask = pasted(under, Image.new("RGB", (40, 40), (255, 0, 255)), Draw(16, 4, 8, "", False), 4)
    expected = torch.zeros(1, 8, 8)
    expected[:, 3:5, 2:4] = 1.0
    assert torch.equal(mask, expected)
    assert torch.equal(pixels[:, 8:24, 4:20], torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1).expand(3, 16, 16))
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[8:24, 4:20] = False
    assert torch.equal(pixels[:, outside], under[:, outside])


def test_photos_are_pasted_into_all_of_the_bases_pictures(
    base: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    made = built(base, photos, prior)
    count = len(OF_STARK) * CHUNK * VIEWS_PER_PICTURE
    assert made.latents.shape == (count, 4, 8, 8)
    assert made.masks.shape == (count, 1, 8, 8)
    assert len({latent.sum().item() for latent in made.latents}) == count
    assert {caption: made.captions.count(caption) for caption in OF_STARK} == dict.fromkeys(
        OF_STARK, CHUNK * VIEWS_PER_PICTURE
    )
    assert made.prior is not None
    assert made.prior.captions == tuple(plain for plain in OF_STARK.values() for _ in range(CHUNK))
    for mask, caption in zip(made.masks, made.captions, strict=True):
        columns = mask[0].any(dim=0).nonzero().flatten().float()
        assert 0 < mask.sum() < 16
        assert (columns.mean() < 3.5) == caption.startswith("photo of a <stark>")


def test_they_follow_from_photos_and_seed(base: DiffusionModel, photos: list[Path], prior: Path) -> None:
    """The second time no picture is drawn; another seed pastes elsewhere into the same pictures."""
    first, units = built(base, photos, prior), set[str]()
    again = built(base, photos, prior, run=InProcessRun(on_step=lambda unit, *_: units.add(unit)))
    other = built(base, photos, prior, seed=8)
    assert units == {"photos"}
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.masks, again.masks)
    assert first.captions == again.captions
    assert not torch.equal(first.masks, other.masks)
    assert first.prior is not None
    assert other.prior is not None
    assert torch.equal(first.prior.latents, other.prior.latents)


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
    assert method in METHODS
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
