"""The text encoder of CLIP once more: numpy, float64, one text at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def arrays(module: Any) -> dict[str, Array]:
    """All tensors of a module in float64, names without the ``text_model.`` that some versions put before."""
    return {
        name.removeprefix("text_model."): tensor.detach().double().numpy()
        for name, tensor in module.state_dict().items()
    }


def encode(weights: Mapping[str, Array], embedded: Array, heads: int, epsilon: float = 1e-5) -> Array:
    """Embeddings [T, d] -> last hidden state after the final norm [T, d] (Radford et al. 2021: pre-norm blocks,
    causal mask, quick GELU).
    """
    states = embedded + weights["embeddings.position_embedding.weight"][: len(embedded)]
    layer = 0
    while f"encoder.layers.{layer}.layer_norm1.weight" in weights:
        own = {
            name.removeprefix(f"encoder.layers.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"encoder.layers.{layer}.")
        }
        states = states + _attention(own, _norm(own, "layer_norm1", states, epsilon), heads)
        hidden = _linear(own, "mlp.fc1", _norm(own, "layer_norm2", states, epsilon))
        states = states + _linear(own, "mlp.fc2", hidden / (1.0 + np.exp(-1.702 * hidden)))
        layer += 1
    return _norm(weights, "final_layer_norm", states, epsilon)


def _attention(own: Mapping[str, Array], states: Array, heads: int) -> Array:
    length, width = states.shape
    query, key, value = (_linear(own, f"self_attn.{part}_proj", states) for part in "qkv")
    size = width // heads
    merged = np.zeros_like(states)
    for head in range(heads):
        own_part = slice(head * size, (head + 1) * size)
        for at in range(length):
            scores = key[: at + 1, own_part] @ query[at, own_part] / np.sqrt(size)
            shares = np.exp(scores - scores.max())
            merged[at, own_part] = (shares / shares.sum()) @ value[: at + 1, own_part]
    return _linear(own, "self_attn.out_proj", merged)


def _linear(own: Mapping[str, Array], name: str, states: Array) -> Array:
    return states @ own[f"{name}.weight"].T + own[f"{name}.bias"]


def _norm(own: Mapping[str, Array], name: str, states: Array, epsilon: float) -> Array:
    centred = states - states.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon)
    return scaled * own[f"{name}.weight"] + own[f"{name}.bias"]
