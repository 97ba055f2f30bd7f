"""Cross-attention maps, words' shares in them and the loss of attention guidance, slowly in numpy and float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tests.ml.teaching import random_edit
from worker.ml.attention import cross_attention_modules
from worker.ml.attention_maps import watched, word_maps
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.sampling.attention_guidance import gradient, least_attended

Array = NDArray[np.float64]
WORDS = ((5, 6), (8,))
MIDDLE = torch.tensor(500)


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def slow_maps(asked: dict[int, Array], keys: list[Array], heads: int) -> Array:
    """Hidden states' queries [n, inner] by layer and keys [T, inner] of each layer -> [n, T]."""
    every = []
    for layer, query in asked.items():
        width = query.shape[1] // heads
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[:, part] @ keys[layer][:, part].T / np.sqrt(width)
            every.append(np.stack([softmax(row) for row in scores]))
    return np.mean(every, axis=0)


def slow_loss(maps: Array, height: int, width: int) -> float:
    """1 - min over words of the largest smoothed share, cell by cell."""
    line = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * 0.5**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    largest = []
    for word in WORDS:
        share = np.array([softmax(100 * row[1:])[[at - 1 for at in word]].sum() for row in maps])
        plane = share.reshape(height, width)
        smooth = np.zeros_like(plane)
        for y in range(height):
            for x in range(width):
                for down in (-1, 0, 1):
                    for right in (-1, 0, 1):
                        near = plane[min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1)]
                        smooth[y, x] += kernel[down + 1, right + 1] * near
        largest.append(smooth.max())
    return float(1.0 - min(largest))


def asked_of(
    model: DiffusionModel, noisy: torch.Tensor, kv: object, t: torch.Tensor = MIDDLE
) -> dict[int, Array]:
    """What hidden states ask in each cross-attention of a pass, seen from outside the processor."""
    seen: dict[int, Array] = {}
    handles = [
        attn.to_q.register_forward_hook(
            lambda _, __, out, layer=layer: seen.__setitem__(layer, out[0].double().numpy())
        )
        for layer, (_, attn) in enumerate(cross_attention_modules(model.denoiser))
    ]
    with torch.no_grad():
        model.predict(noisy, t, kv)  # type: ignore[arg-type]
    for handle in handles:
        handle.remove()
    return seen


def test_maps_and_loss_agree_with_their_definition(model: DiffusionModel) -> None:
    noisy = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(1))
    prompt = Prompt("a photo of a <stark> dog on the beach", ((random_edit(model, size=0.1), 1.0),))
    with torch.no_grad():
        conditioning = text_kv(model, [prompt])
        maps = watched(model, noisy, torch.tensor(500), conditioning)
    assert maps.shape[:3] == (1, 6, 4)
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 6, 4))
    heads = {attn.heads for _, attn in cross_attention_modules(model.denoiser)}
    assert len(heads) == 1
    keys = [key[0].double().numpy() for key in conditioning.kv.keys]
    expected = slow_maps(asked_of(model, noisy, conditioning), keys, heads.pop())
    np.testing.assert_allclose(maps[0].flatten(0, 1).numpy(), expected, atol=1e-6)
    loss = float(least_attended(maps[0], WORDS))
    np.testing.assert_allclose(loss, slow_loss(expected, 6, 4), atol=1e-5)
    shares = word_maps(maps[0], [[at] for at in range(1, maps.shape[-1])])
    torch.testing.assert_close(shares.sum(0), torch.ones(6, 4))


def test_the_gradient_agrees_with_finite_differences(tiny_folder: Path) -> None:
    """Central differences in double precision, in the gradient's own direction and in a random one."""
    model = load_base(tiny_folder, dtype=torch.float64)
    draw = torch.Generator().manual_seed(2)
    noisy, other = (torch.randn(1, 4, 8, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    prompt = Prompt("a photo of a <stark> dog on the beach", ((random_edit(model, size=0.1), 1.0),))
    with torch.no_grad():
        conditioning = text_kv(model, [prompt])
    slope = gradient(model, noisy, torch.tensor(500), conditioning, WORDS)
    assert not any(parameter.requires_grad for parameter in model.denoiser.parameters())

    heads = cross_attention_modules(model.denoiser)[0][1].heads
    keys = [key[0].numpy() for key in conditioning.kv.keys]

    def loss(at: torch.Tensor) -> float:
        return slow_loss(slow_maps(asked_of(model, at, conditioning), keys, heads), 4, 4)

    for direction in (slope / slope.norm(), other / other.norm()):
        step = 1e-5 * direction
        numeric = (loss(noisy + step) - loss(noisy - step)) / 2e-5
        np.testing.assert_allclose(float((slope * direction).sum()), numeric, rtol=1e-4, atol=1e-9)
    assert float(slope.norm()) > 1e-6
