"""Perfusion (Tewel et al., SIGGRAPH 2023, arXiv 2305.01644): gated values for one word, keys locked to its class."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.methods.card import MethodCard, Presets
from backend.schemas.methods.shared_parameters import Flip, UnmaskedWeight
from backend.schemas.strict import Strict


class PerfusionParams(Strict):
    """Hyper-parameters; the paper's values for SD 1.x stand in the descriptions (methods.md 10.2)."""

    steps: Annotated[int, Field(ge=1, le=20000, description="optimiser steps (paper: 400)")] = 400
    batch_size: Annotated[int, Field(ge=1, le=64, description="photos a step (paper: 16)")] = 4
    learning_rate: Annotated[float, Field(gt=0, le=1.0, description="of the target values (paper: 0.03)")] = (
        0.03
    )
    token_learning_rate: Annotated[
        float, Field(gt=0, le=1.0, description="of the word's vector (paper: 0.006)")
    ] = 0.006
    key_decay: Annotated[
        float, Field(ge=0, lt=1, description="of the moving average that is the word's key (paper: 0.99)")
    ] = 0.99
    gate_bias: Annotated[
        float,
        Field(
            ge=0, le=2, description="how alike a token must be to open the gate, in training (paper: 0.75)"
        ),
    ] = 0.75
    gate_temperature: Annotated[
        float, Field(gt=0, le=10, description="how softly it opens, in training (paper: 0.1)")
    ] = 0.1
    draw_bias: Annotated[
        float, Field(ge=0, le=2, description="the same when pictures are drawn (paper: 0.6 to 0.75)")
    ] = 0.7
    draw_temperature: Annotated[
        float, Field(gt=0, le=10, description="the same when pictures are drawn (paper: 0.15)")
    ] = 0.15
    locking: Annotated[
        Literal["local", "global"],
        Field(description="lock the word's own keys to the class, or those of the whole prompt"),
    ] = "local"
    flip: Flip = True
    unmasked_weight: UnmaskedWeight = 1.0
    max_grad_norm: Annotated[float, Field(gt=0, le=100)] = 1.0
    preview_every: Annotated[
        int, Field(ge=0, le=20000, description="steps between previews; 0: first and last only")
    ] = 50


class WordGate(Strict):
    """How one word is drawn: its gate, what it locks, and the scale of its part. Trained weights have one for all of
    their words, among the parameters; merged ones have ``gates`` there, {word: gate}.
    """

    bias: Annotated[float, Field(ge=0, le=2)]
    temperature: Annotated[float, Field(gt=0, le=10)]
    locking: Literal["local", "global"]
    scale: Annotated[float, Field(ge=-100, le=100)] = 1.0


SMALL: Presets = {
    "quick": {"steps": 60},
    "balanced": {"steps": 100},
    "thorough": {"steps": 300, "learning_rate": 0.01, "token_learning_rate": 0.002},
}
STABLE_DIFFUSION: Presets = {
    "quick": {"steps": 200, "batch_size": 8},
    "balanced": {"steps": 400, "batch_size": 8},
    "thorough": {"steps": 400, "batch_size": 16},
}
"""The defaults are the paper's rates (section 5); its batch is sixteen, which wants more than 24 GB of GPU memory."""


def side(params: PerfusionParams) -> Literal["text", "weights"]:
    """Only what single tokens say changes."""
    return "text"


CARD = MethodCard(
    name="perfusion",
    title="Perfusion",
    description=(
        "Learns what one word says and leaves where it is read to its class, in a file of a hundred kilobytes; "
        "for a subject that must obey the prompt."
    ),
    source=(
        "Tewel et al., Key-Locked Rank One Editing for Text-to-Image Personalization, SIGGRAPH 2023 "
        "(arXiv 2305.01644)"
    ),
    min_photos=3,
    max_photos=50,
    params_type=PerfusionParams,
    presets={"small": SMALL, "stable-diffusion": STABLE_DIFFUSION},
    side=side,
    needs=frozenset({"text-kv"}),
    small_already=(
        "One vector for each layer, behind a gate, is no change of a matrix; nothing of it could be cut."
    ),
)
