"""Where words act: boxes against all boxes tried one by one, and what a look leaves of the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.ml.teaching import everything, random_edit, same
from worker.ml.attention_maps import watched, word_maps
from worker.ml.conditioning import DenseChange, Prompt, text_kv
from worker.ml.evaluation.word_attention import MASS, acting, in_common, smallest_box
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.regions import Box
from worker.ml.sampling.latents import Picture

WORDS = ((5, 6), (9,))


@pytest.mark.parametrize("shape", [(6, 4), (5, 5), (1, 3), (1, 1)])
def test_the_box_is_the_smallest_with_most_of_the_map(shape: tuple[int, int]) -> None:
    plane = torch.rand(shape, generator=torch.Generator().manual_seed(3)) ** 6
    values, (height, width) = plane.double().numpy(), shape
    every = [
        ((bottom - top) * (right - left), -values[top:bottom, left:right].sum(), (left, top, right, bottom))
        for top in range(height)
        for bottom in range(top + 1, height + 1)
        for left in range(width)
        for right in range(left + 1, width + 1)
        if values[top:bottom, left:right].sum() >= MASS * values.sum()
    ]
    left, top, right, bottom = min(every)[2]
    box = smallest_box(plane)
    found = (box.x, box.y, box.x + box.width, box.y + box.height)
    np.testing.assert_allclose(found, (left / width, top / height, right / width, bottom / height))


def test_what_boxes_have_in_common() -> None:
    assert in_common(Box(0, 0, 0.5, 1), Box(0, 0, 0.5, 1)) == 1.0
    assert in_common(Box(0, 0, 0.5, 1), Box(0.5, 0, 0.5, 1)) == 0.0
    assert in_common(Box(0, 0, 0.25, 0.5), Box(0.75, 0.75, 0.25, 0.25)) == 0.0
    assert in_common(Box(0, 0, 0.5, 1), Box(0.25, 0, 0.5, 1)) == pytest.approx(1 / 3)


def test_words_act_where_the_mean_map_says(model: DiffusionModel) -> None:
    """Four levels, the picture's own prompt and weights; the base model is as before."""
    pixels = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    prompt = Prompt("a photo of a <stark> dog on the beach", ((random_edit(model, size=0.1), 1.0),))
    picture = Picture(prompt, Prompt(""), 3, 4, 5.0, "ddim", 48, 32)
    before = everything(model)
    found = acting(model, picture, WORDS, pixels)
    assert found == acting(model, picture, WORDS, pixels)

    noise = torch.randn(4, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    latents = model.encode_images(pixels[None])
    maps = []
    with torch.no_grad():
        kept = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
        for row, level in enumerate((751, 501, 251, 1)):
            noisy = kept[level].sqrt() * latents + (1 - kept[level]).sqrt() * noise[row : row + 1]
            maps.append(watched(model, noisy, torch.tensor([level]), text_kv(model, [prompt])))
        planes = word_maps(torch.cat(maps).mean(0), WORDS)
    for one, plane in zip(found, planes, strict=True):
        assert one.share == pytest.approx(float(plane.max()), abs=1e-4)
        assert one.box == smallest_box(plane)

    site = model.cross_attention()[0].name + ".to_q.weight"
    changed = WeightEdit({site: DenseChange(torch.randn(model.denoiser.get_parameter(site).shape))})
    assert acting(model, replace(picture, installation=((changed, 1.0),)), WORDS, pixels) != found
    assert same(before, everything(model))
