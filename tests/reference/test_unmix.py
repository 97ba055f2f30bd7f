"""The unmix regulariser of collages, slowly in numpy and float64 (methods.md 9)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ml.teaching import random_edit
from tests.reference.test_attention_maps import asked_of, slow_maps
from worker.ml.attention import cross_attention_modules
from worker.ml.conditioning import Conditioning, Prompt, TextEdit, TokenRows, text_kv
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.training.collages import collage_captions
from worker.ml.training.unmix import Sides, unmix_losses

CAPTIONS = collage_captions("a <stark> dog", "a <wolf> cat")
TIMES = torch.tensor([500, 100, 900])
COLLAGES: dict[int, Sides] = {0: ((4,), (11,)), 2: ((4,), (8, 7))}
"""Of three rows; the second word of the last is two tokens long."""


@pytest.fixture(scope="module")
def double(tiny_folder: Path) -> DiffusionModel:
    return load_base(tiny_folder, dtype=torch.float64)


def both(model: DiffusionModel) -> TextEdit:
    first, second = random_edit(model, "stark", 1, size=0.1), random_edit(model, "wolf", 2, size=0.1)
    return replace(first, tokens={**first.tokens, **second.tokens})


def read(model: DiffusionModel, edit: TextEdit) -> Conditioning:
    texts = [CAPTIONS[0], "photo of a <stark> dog", CAPTIONS[1]]
    return text_kv(model, [Prompt(text, ((edit, 1.0),)) for text in texts])


def slow_unmix(model: DiffusionModel, noisy: torch.Tensor, conditioning: Conditioning) -> list[float]:
    """Row by row, layer by layer, cell by cell; the latents are 10 x 14, so the layers 5 x 7 and the middle column is
    half of each side's.
    """
    left_share = [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    heads = cross_attention_modules(model.denoiser)[0][1].heads
    found = []
    for row, (left, right) in COLLAGES.items():
        alone = conditioning.rows([row])
        keys = [key[0].numpy() for key in alone.kv.keys]
        total = 0.0
        for layer, query in asked_of(model, noisy[row : row + 1], alone, TIMES[row]).items():
            maps = slow_maps({layer: query}, keys, heads).reshape(5, 7, -1)
            cells = [
                (maps[y, x, list(left)].sum() * (1.0 - left_share[x])) ** 2
                + (maps[y, x, list(right)].sum() * left_share[x]) ** 2
                for y in range(5)
                for x in range(7)
            ]
            total += float(np.mean(cells))
        found.append(total)
    return found


def fast_unmix(model: DiffusionModel, noisy: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    watching = replace(conditioning, queries={})
    model.predict(noisy, TIMES, watching)
    return unmix_losses(watching, (10, 14), COLLAGES)


def test_the_loss_agrees_with_its_definition(double: DiffusionModel) -> None:
    noisy = torch.randn(3, 4, 10, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        conditioning = read(double, both(double))
        losses = fast_unmix(double, noisy, conditioning)
    expected = slow_unmix(double, noisy, conditioning)
    assert min(expected) > 1e-5
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-9)


def test_the_gradient_in_a_word_agrees_with_finite_differences(double: DiffusionModel) -> None:
    """Central differences along a random direction of one word's vector."""
    draw = torch.Generator().manual_seed(3)
    noisy = torch.randn(3, 4, 10, 14, generator=draw, dtype=torch.float64)
    edit = both(double)
    start = edit.tokens["stark"].learned.double()
    direction = torch.randn(start.shape, generator=draw, dtype=torch.float64)

    def at(word: torch.Tensor) -> Conditioning:
        return read(double, replace(edit, tokens={**edit.tokens, "stark": TokenRows(start, word)}))

    leaf = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(fast_unmix(double, noisy, at(leaf)).sum(), leaf)
    step = 1e-5 * direction
    with torch.no_grad():
        above, below = (sum(slow_unmix(double, noisy, at(start + sign * step))) for sign in (1, -1))
    np.testing.assert_allclose(float((slope * direction).sum()), (above - below) / 2e-5, rtol=1e-5)
