"""Layers of a base model by what they are, told from the shapes of its parameters alone."""

from __future__ import annotations

from collections.abc import Mapping

from backend.schemas.bases import BaseDescription

Shapes = dict[str, list[int]]
"""{name: shape}"""


def sites(base: BaseDescription) -> Shapes:
    """{module of the denoiser: [out, in, ...] of its weight} of all linear layers and convolutions."""
    return {
        path.removesuffix(".weight"): shape
        for path, shape in base.denoiser_shapes.items()
        if path.endswith(".weight") and len(shape) > 1
    }


def gains(shapes: Mapping[str, list[int]]) -> Shapes:
    """{module: [elements]} of the norms."""
    named = {
        path.removesuffix(".weight"): shape for path, shape in shapes.items() if path.endswith(".weight")
    }
    return {module: shape for module, shape in named.items() if len(shape) == 1}


def encoder_layers(base: BaseDescription) -> Shapes:
    """{module of the text encoder: [out, in]} of its linear layers."""
    return {
        path.removesuffix(".weight"): shape
        for path, shape in base.encoder_shapes.items()
        if path.endswith(".weight") and len(shape) == 2 and not path.startswith("embeddings.")
    }


def attention(base: BaseDescription, chosen: str) -> Shapes:
    """Linear layers of all attention, of the cross-attention, or of its keys and values."""
    if chosen == "key-value":
        return base.text_sites
    marks = {"all": (".attn1.", ".attn2."), "cross": (".attn2.",), "none": ()}[chosen]
    linear = {site: shape for site, shape in sites(base).items() if len(shape) == 2}
    return {site: shape for site, shape in linear.items() if any(mark in site for mark in marks)}
