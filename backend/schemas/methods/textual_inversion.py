"""Textual Inversion (Gal et al., ICLR 2023, arXiv 2208.01618): a word, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.methods.card import MethodCard, Presets
from backend.schemas.methods.shared_parameters import Flip, PreviewEvery, UnmaskedWeight
from backend.schemas.strict import Strict


class TextualInversionParams(Strict):
    """Hyper-parameters; the paper's values stand in the descriptions (methods.md 1)."""

    steps: Annotated[int, Field(ge=1, le=20000, description="optimiser steps (paper: 5000)")] = 3000
    batch_size: Annotated[int, Field(ge=1, le=64, description="photos a step (paper: 4 on each GPU)")] = 4
    learning_rate: Annotated[
        float,
        Field(gt=0, le=0.1, description="for each photo of a step: multiplied by batch_size (paper: 5e-3)"),
    ] = 5e-4
    vectors: Annotated[
        int, Field(ge=1, le=8, description="vectors of the word; each takes a token of the prompt")
    ] = 1
    per_layer: Annotated[
        bool, Field(description="a vector of its own for every cross-attention layer (P+)")
    ] = False
    initial_word: Annotated[
        str, Field(max_length=80, description="the vectors start from it; empty: from the class noun")
    ] = ""
    templates: Annotated[
        bool, Field(description='the paper\'s sentences as captions; off: always "photo of a"')
    ] = True
    norm: Annotated[
        Literal["free", "cap", "mean"],
        Field(description="length of the vectors: free, capped, or that of a mean word of the vocabulary"),
    ] = "free"
    norm_cap: Annotated[
        float, Field(ge=0.1, le=100, description="for norm=cap, in lengths of a mean word")
    ] = 1.4
    flip: Flip = True
    unmasked_weight: UnmaskedWeight = 1.0
    preview_every: PreviewEvery = 100


SMALL: Presets = {
    "quick": {"steps": 400},
    "balanced": {"steps": 1200},
    "thorough": {},
}
STABLE_DIFFUSION: Presets = {
    "quick": {"steps": 1000},
    "balanced": {"steps": 3000},
    "thorough": {"steps": 5000},
}
"""Balanced: diffusers' script, 5e-4 for each of four photos; Thorough: the paper's number of steps (section 4)."""


def side(params: TextualInversionParams) -> Literal["text", "weights"]:
    """A word changes what the text says and nothing else."""
    return "text"


CARD = MethodCard(
    name="textual-inversion",
    title="Textual Inversion",
    description=(
        "Learns a new word alone, a file of kilobytes that leaves the model untouched; "
        "for styles, and for subjects where a likeness will do."
    ),
    source="Gal et al., An Image is Worth One Word, ICLR 2023 (arXiv 2208.01618)",
    min_photos=3,
    max_photos=50,
    params_type=TextualInversionParams,
    presets={"small": SMALL, "stable-diffusion": STABLE_DIFFUSION},
    side=side,
    needs=frozenset({"text-kv"}),
    small_already="A word alone changes no layer; nothing of it could be cut.",
)
