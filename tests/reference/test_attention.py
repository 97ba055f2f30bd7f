"""Cross-attention with keys and values of an edit, against a slow one in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from tests.ml.teaching import random_edit
from worker.ml.attention import cross_attention_modules
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.families.base import DiffusionModel

Array = NDArray[np.float64]
TEXT = "a photo of a dog"


def array(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def attention(query: Array, key: Array, value: Array, heads: int) -> Array:
    """softmax(q k^T / sqrt(d)) v, head by head and position by position: [n, inner], [T, inner] twice -> [n,
    inner].
    """
    out = np.zeros_like(query)
    width = query.shape[1] // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for position in range(len(query)):
            scores = key[:, part] @ query[position, part] / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            out[position, part] = (weights / weights.sum()) @ value[:, part]
    return out


def test_the_processor_agrees_with_the_definition(model: DiffusionModel) -> None:
    edit = random_edit(model)
    scale = 0.6
    name, attn = cross_attention_modules(model.denoiser)[1]
    layer = model.cross_attention()[1]
    hidden = torch.randn(1, 16, attn.to_q.weight.shape[1])
    kv = text_kv(model, [Prompt(TEXT, ((edit, scale),))]).kv
    with torch.no_grad():
        ours = attn(hidden, encoder_hidden_states=kv)[0]
    states = array(model.encode_prompts(torch.tensor([model.token_ids(TEXT, {})]), None).states[0])
    changed = {
        part: array(site.weight) + scale * array(edit.sites[site.name].dense())
        for part, site in (("k", layer.key), ("v", layer.value))
    }
    query = array(hidden[0]) @ array(attn.to_q.weight).T
    mixed = attention(query, states @ changed["k"].T, states @ changed["v"].T, attn.heads)
    expected = mixed @ array(attn.to_out[0].weight).T + array(attn.to_out[0].bias)
    assert layer.name == name
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-5)


def test_the_gradient_leaves_out_what_the_start_token_carries(model: DiffusionModel) -> None:
    """Central differences of a loss in which position 0 keeps the key and value it has: that is what
    detaching means.
    """
    edit = random_edit(model)
    _, attn = cross_attention_modules(model.denoiser)[0]
    layer = model.cross_attention()[0]
    changes = {site.name: edit.sites[site.name].dense().requires_grad_() for site in (layer.key, layer.value)}
    hidden = torch.randn(1, 16, attn.to_q.weight.shape[1])
    seen = torch.randn(16, attn.to_out[0].weight.shape[0])
    kv = text_kv(model, [Prompt(TEXT, ((edit, 1.0),))], detach_first=True).kv
    (attn(hidden, encoder_hidden_states=kv)[0] * seen).sum().backward()

    states = array(model.encode_prompts(torch.tensor([model.token_ids(TEXT, {})]), None).states[0])
    query = array(hidden[0]) @ array(attn.to_q.weight).T
    weights = {site.name: array(site.weight) + array(changes[site.name]) for site in (layer.key, layer.value)}

    def projected(moved: dict[str, Array], name: str) -> Array:
        return np.vstack([states[:1] @ weights[name].T, states[1:] @ moved[name].T])

    def loss(moved: dict[str, Array]) -> float:
        key, value = projected(moved, layer.key.name), projected(moved, layer.value.name)
        out = attention(query, key, value, attn.heads) @ array(attn.to_out[0].weight).T
        return float((out * array(seen)).sum())

    for name, change in changes.items():
        assert change.grad is not None
        for row, column in [(0, 0), (5, 17), (63, 31), (20, 8)]:
            step = np.zeros_like(weights[name])
            step[row, column] = 1e-5
            up, down = ({**weights, name: weights[name] + sign * step} for sign in (1, -1))
            numeric = (loss(up) - loss(down)) / 2e-5
            np.testing.assert_allclose(change.grad[row, column].item(), numeric, atol=2e-4, rtol=2e-3)


def test_edits_add_up_in_any_order(model: DiffusionModel) -> None:
    one, two = random_edit(model, "a", seed=1), random_edit(model, "b", seed=2)
    prompt: Callable[..., Prompt] = lambda *edits: Prompt(TEXT, tuple(edits))  # noqa: E731
    ab, ba = (text_kv(model, [prompt(*e)]).kv for e in (((one, 0.5), (two, 1.5)), ((two, 1.5), (one, 0.5))))
    states = array(model.encode_prompts(torch.tensor([model.token_ids(TEXT, {})]), None).states[0])
    for layer, first, second in zip(model.cross_attention(), ab.values, ba.values, strict=True):
        name = layer.value.name
        matrix = (
            array(layer.value.weight)
            + 0.5 * array(one.sites[name].dense())
            + 1.5 * array(two.sites[name].dense())
        )
        np.testing.assert_allclose(array(first[0]), states @ matrix.T, atol=2e-5)
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
