"""Companions: what captions say, where photos are pasted, and what counts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from backend.schemas.prior_images import CHUNK, COMPANIONS
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import ConceptExamples
from worker.ml.run import InProcessRun, Run
from worker.ml.streams import rng
from worker.ml.training.augmentation import Draw
from worker.ml.training.companions import (
    LARGEST,
    SMALLEST,
    VIEWS_PER_PICTURE,
    Companions,
    Company,
    beside,
    build_companions,
    companies,
    companion_texts,
    pasted,
    place_draw,
)

NOUNS = ["dog", "cat", "owl", "teapot"]
EXAMPLES = ["photo of {} on the beach", "photo of the {}", "photo of {} in snow"]
OF_STARK = {
    "photo of a <stark> dog and a cat on the beach": "photo of a dog and a cat on the beach",
    "photo of an owl and a <stark> dog in snow": "photo of an owl and a dog in snow",
    "photo of a <stark> dog and a teapot on the beach": "photo of a dog and a teapot on the beach",
}


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


def test_the_companion_counts_as_much_as_the_subject_and_the_seam_not() -> None:
    """Its half is columns 4 to 7; rows 2 to 6 and columns 1 to 5 are the box and what touches it."""
    box = torch.zeros(1, 8, 8)
    box[:, 4:5, 2:4] = 1.0
    own = box * torch.tensor([0.5])
    found = beside(box, own, left=True)
    free = torch.ones(1, 8, 8)
    free[..., :4] = 0.0
    free[:, 2:7, 0:6] = 0.0
    assert torch.equal(found > 0, free > 0)
    assert len(found[found > 0].unique()) == 1
    assert float(found.sum()) == pytest.approx(float(own.sum()))
    mirrored = beside(box.flip(-1), own.flip(-1), left=False)
    assert torch.equal(mirrored.flip(-1), found)


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
        left = caption.startswith("photo of a <stark>")
        columns = (mask[0] == 1).any(dim=0).nonzero().flatten().float()
        assert 0 < (mask == 1).sum() < 16
        assert (columns.mean() < 3.5) == left
        assert bool((mask[..., 4:] if left else mask[..., :4]).any())


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
