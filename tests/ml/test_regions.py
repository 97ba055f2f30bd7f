"""Regions: the identities of methods.md T18, masks, batches whose rows have other regions or none, passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ml.teaching import everything, random_edit, same, stark, teach
from worker.ml.conditioning import Attended, Conditioning, Prompt, TextEdit, text_kv
from worker.ml.errors import BaseUnusable, InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.regions import BaseShare, Box, Place, Regions, grid
from worker.ml.run import InProcessRun
from worker.ml.sampling.engine import GenerationUnit, RegionUnit, generate, pictures
from worker.ml.sampling.latents import ConditioningCache, Picture, sample_latents
from worker.ml.sampling.regions import RegionPrompt

FULL, LEFT, RIGHT = Box(0, 0, 1, 1), Box(0, 0, 0.5, 1), Box(0.5, 0, 0.5, 1)
DOG, CAT, OWL = (Prompt(f"a photo of a {noun} on the beach") for noun in ("dog", "cat", "owl"))
NOTHING = Prompt("", negative=True)
PICTURE = Picture(DOG, NOTHING, 3, 4, 5.0, "ddim", 32, 32)
UNIT = GenerationUnit(0, "a photo of a dog", "", 11, 3, 5.0, "ddim", 32, 32)


def region(prompt: Prompt, box: Box) -> RegionPrompt:
    return RegionPrompt(prompt, Prompt("", prompt.edits, negative=True), box)


def latents(model: DiffusionModel, *drawn: Picture) -> list[Tensor]:
    found = dict(sample_latents(model, drawn, InProcessRun(), "images"))
    return [found[place] for place in range(len(drawn))]


def predicted(model: DiffusionModel, conditioning: Conditioning, size: tuple[int, int] = (8, 8)) -> Tensor:
    noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(2))
    noise = noise.repeat(len(conditioning.kv), 1, 1, 1)
    with torch.no_grad():
        return model.predict(noise, torch.full((len(noise),), 500), conditioning)


def with_regions(
    model: DiffusionModel, whole: Prompt, inside: Sequence[tuple[Prompt, Box]], share: float
) -> Any:
    boxes = tuple(box for _, box in inside)
    places = tuple(Place(box, boxes, BaseShare(share, share)) for box in boxes)
    kv = text_kv(model, [prompt for prompt, _ in inside]).kv
    return replace(text_kv(model, [whole]), regions=Regions(kv, (0,) * len(boxes), places))


# ---- masks


def test_a_mask_is_the_share_of_each_cell_that_lies_in_the_box() -> None:
    mask = Box(0.25, 0.5, 0.5, 0.25).coverage((2, 3))  # rows 0..1/2..1, columns at thirds
    assert torch.allclose(mask, torch.tensor([[0, 0, 0], [0.125, 0.5, 0.125]]))


@pytest.mark.parametrize("size", [(8, 8), (5, 3), (1, 1), (13, 4)])
def test_a_mask_keeps_the_area_of_the_box_on_every_grid(size: tuple[int, int]) -> None:
    box = Box(0.13, 0.2, 0.61, 0.37)
    assert box.coverage(size).mean().item() == pytest.approx(0.61 * 0.37, abs=1e-6)


def test_overlapping_boxes_are_averaged() -> None:
    boxes = (FULL, LEFT, LEFT)
    masks = torch.stack([Place(box, boxes, BaseShare()).mask((2, 4)) for box in boxes])
    assert torch.allclose(masks.sum(0), torch.ones(2, 4))
    assert torch.allclose(masks[:, 0, 0], torch.full((3,), 1 / 3))
    assert torch.allclose(masks[:, 0, 3], torch.tensor([1.0, 0.0, 0.0]))


def test_the_grid_of_a_layer_follows_from_its_positions() -> None:
    assert grid((64, 48), 64 * 48) == (64, 48)
    assert grid((64, 48), 16 * 12) == (16, 12)
    assert grid((9, 13), 5 * 7) == (5, 7)
    assert grid((9, 13), 3 * 4) == (3, 4)
    with pytest.raises(BaseUnusable, match="regions"):
        grid((9, 13), 34)


def test_the_base_share_goes_straight_from_first_to_last() -> None:
    share = BaseShare(0.0, 0.6)
    assert [share.at(each) for each in (0.0, 0.5, 1.0)] == [0.0, 0.3, 0.6]


# ---- T18


def test_one_box_over_all_is_the_plain_prompt(model: DiffusionModel) -> None:
    whole = predicted(model, with_regions(model, DOG, [(CAT, FULL)], 0.0))
    assert torch.allclose(whole, predicted(model, text_kv(model, [CAT])), atol=1e-6)
    assert not torch.allclose(whole, predicted(model, text_kv(model, [DOG])), atol=1e-3)


def test_share_one_is_the_global_prompt(model: DiffusionModel) -> None:
    whole = predicted(model, with_regions(model, DOG, [(CAT, LEFT), (OWL, RIGHT)], 1.0))
    assert torch.allclose(whole, predicted(model, text_kv(model, [DOG])), atol=1e-6)


def test_two_halves_of_one_prompt_are_the_prompt(model: DiffusionModel) -> None:
    for size in ((8, 8), (10, 6), (9, 7)):
        halves = with_regions(model, DOG, [(CAT, LEFT), (CAT, RIGHT)], 0.0)
        alone = predicted(model, text_kv(model, [CAT]), size)
        assert torch.allclose(predicted(model, halves, size), alone, atol=1e-5)


def test_zero_boxes_are_the_global_prompt_to_the_bit(model: DiffusionModel) -> None:
    """Also beside rows that have some."""
    plain = text_kv(model, [DOG, OWL])
    assert not isinstance(plain.attended((8, 8)), Attended)
    joined = Conditioning.concatenated([text_kv(model, [DOG]), with_regions(model, OWL, [(CAT, LEFT)], 0.2)])
    there, alone = predicted(model, joined), predicted(model, plain)
    assert torch.equal(there[0], alone[0])
    assert not torch.equal(there[1], alone[1])


def test_the_attention_of_a_layer_is_the_written_formula(model: DiffusionModel) -> None:
    """Against explicit softmax attention in float64, on a grid that is not square."""
    conditioning = with_regions(model, DOG, [(CAT, Box(0, 0, 0.6, 0.5)), (OWL, Box(0.4, 0.2, 0.6, 0.8))], 0.3)
    attn = model.denoiser.get_submodule(model.cross_attention()[1].name)
    hidden = torch.randn(1, 15, attn.to_q.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = attn.processor(attn, hidden, conditioning.attended((5, 3)))
        kv = [text_kv(model, [prompt]).kv for prompt in (DOG, CAT, OWL)]
        outs = [_softmax_attention(attn, hidden, each.keys[1], each.values[1]) for each in kv]
        weight = [
            0.7 * place.mask((5, 3)).flatten()[:, None].double() for place in conditioning.regions.places
        ]
        mixed = (1 - weight[0] - weight[1]) * outs[0] + weight[0] * outs[1] + weight[1] * outs[2]
        expected = attn.to_out[0](mixed.float())
    assert torch.allclose(ours, expected, atol=1e-5)


def _softmax_attention(attn: Any, hidden: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads = [
        each.double().unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for each in (attn.to_q(hidden), key, value)
    ]
    scores = heads[0] @ heads[1].transpose(-1, -2) / heads[0].shape[-1] ** 0.5
    return (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)


# ---- batches


def test_rows_have_their_own_regions_wherever_they_go(model: DiffusionModel) -> None:
    two = with_regions(model, DOG, [(CAT, LEFT), (OWL, RIGHT)], 0.2)
    one = with_regions(model, OWL, [(DOG, RIGHT)], 0.1)
    joined = Conditioning.concatenated([two, text_kv(model, [CAT]), one])
    assert joined.regions is not None
    assert joined.regions.rows == (0, 0, 2)
    assert len(joined.regions.kv) == 3
    turned = joined.rows([2, 1, 0, 0])
    assert turned.regions is not None
    assert turned.regions.rows == (0, 2, 2, 3, 3)
    assert joined.rows([1]).regions is None
    expected = [predicted(model, each)[0] for each in (one, text_kv(model, [CAT]), two, two)]
    assert torch.allclose(predicted(model, turned), torch.stack(expected), atol=1e-5)


def test_neighbours_with_other_regions_do_not_matter(model: DiffusionModel) -> None:
    """Concepts of different owners in regions of one batch, and one picture leaves it early."""
    taught = [Prompt("a photo of a <stark> dog", ((random_edit(model, seed=seed), 1.0),)) for seed in (1, 2)]
    drawn = [
        PICTURE,
        replace(PICTURE, regions=(region(taught[0], LEFT), region(CAT, RIGHT)), seed=4),
        replace(
            PICTURE, regions=(region(taught[1], Box(0.2, 0.1, 0.3, 0.3)),), share=BaseShare(0.0, 0.5), seed=5
        ),
    ]
    together = latents(model, *drawn)
    for picture, beside in zip(drawn, together, strict=True):
        assert torch.allclose(latents(model, picture)[0], beside, atol=1e-4)


def test_regions_of_a_picture_change_it_where_their_boxes_are(model: DiffusionModel) -> None:
    boxed = [replace(PICTURE, regions=(region(OWL, box),)) for box in (LEFT, RIGHT)]
    plain, *drawn = latents(model, PICTURE, *boxed)
    left, right = ((plain - each).abs().mean(0) for each in drawn)
    assert left[:, :4].mean() / left[:, 4:].mean() > 1.3 * right[:, :4].mean() / right[:, 4:].mean()


def negatives(model: DiffusionModel, edit: TextEdit) -> int:
    """How many regions the negative row of a guided picture has."""
    seen: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            assert conditioning.regions is not None
            seen.append(sum(row == 0 for row in conditioning.regions.rows))
            return model.predict(noisy, t, conditioning)

    inside = region(Prompt("a <stark> dog", ((edit, 1.0),)), LEFT)
    list(sample_latents(Watched(), [replace(PICTURE, regions=(inside,))], InProcessRun(), "images"))  # type: ignore[arg-type]
    return seen[0]


def test_a_regions_edit_acts_on_its_negative_text_as_it_would_alone(model: DiffusionModel) -> None:
    edit = random_edit(model)
    assert negatives(model, edit) == 1
    assert (
        negatives(model, replace(edit, negative=False)) == 0
    )  # the same keys and values: nothing to compute
    assert negatives(model, TextEdit(edit.tokens, {})) == 0
    inside = region(Prompt("a <stark> dog", ((edit, 1.0),)), FULL)
    boxed = replace(PICTURE, regions=(inside,), share=BaseShare(0.0, 0.0))
    alone = replace(PICTURE, prompt=inside.prompt, negative=inside.negative)
    assert torch.allclose(latents(model, boxed)[0], latents(model, alone)[0], atol=1e-4)


# ---- weight-side concepts, and units


@pytest.fixture(scope="module")
def loras(model: DiffusionModel, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("prior")
    return [
        teach(model, [stark(photos)], folder, method="lora", seed=seed, learning_rate=0.05) for seed in (1, 2)
    ]


def drawn(model: DiffusionModel, *units: GenerationUnit) -> list[Any]:
    found = {unit.index: pixels for unit, pixels in generate(model, units, InProcessRun())}
    return [found[unit.index].astype(int) for unit in units]


def test_a_weight_side_box_over_all_is_the_plain_picture(model: DiffusionModel, loras: list[Any]) -> None:
    before = everything(model)
    used = ((loras[0], 1.0),)
    boxed = replace(UNIT, regions=(RegionUnit("a <stark> dog", FULL, used),), share=BaseShare(0.0, 0.0))
    plain = replace(UNIT, index=1, text="a <stark> dog", weights=used)
    ours, alone, base = drawn(model, boxed, plain, replace(UNIT, index=2))
    assert np.abs(ours - alone).max() <= 2
    assert np.abs(ours - base).max() > 10
    assert same(before, everything(model))


def test_weight_side_concepts_stand_side_by_side(model: DiffusionModel, loras: list[Any]) -> None:
    """Two installations and a text-side neighbour: three passes, and the picture is its own in any batch."""
    regions = (
        RegionUnit("a <stark> dog", Box(0, 0, 0.4, 1), ((loras[0], 1.0),)),
        RegionUnit("a <stark> dog", Box(0.6, 0, 0.4, 1), ((loras[1], 1.0),)),
        RegionUnit("a cat", Box(0.4, 0, 0.2, 1)),
    )
    first = replace(UNIT, regions=regions)
    other = replace(UNIT, index=1, seed=5, regions=(regions[1], regions[0]), text="snow")
    alone = [drawn(model, each)[0] for each in (first, other)]
    for ours, expected in zip(drawn(model, first, other), alone, strict=True):
        assert np.abs(ours - expected).max() <= 2
    swapped = replace(first, regions=(replace(regions[0], weights=regions[1].weights), *regions[1:]))
    assert np.abs(drawn(model, swapped)[0] - alone[0]).max() > 3


def test_everything_wrong_with_a_region_is_found_before_drawing(model: DiffusionModel) -> None:
    wrong = replace(UNIT, regions=(RegionUnit("a <stark> dog", LEFT),))
    with pytest.raises(InputInvalid, match="<stark>"):
        pictures(model, [wrong], ConditioningCache())
