"""DreamBooth (Ruiz et al., CVPR 2023, arXiv 2208.12242): the whole denoiser."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.methods.card import MethodCard, Presets
from backend.schemas.methods.prior_source import DRAWN, FEW_DRAWN, Prior
from backend.schemas.methods.shared_parameters import (
    BatchSize,
    Collages,
    Companions,
    Flip,
    MaxGradNorm,
    PreviewEvery,
    PriorImages,
    PriorSteps,
    PriorWeight,
    UnmaskedWeight,
    UnmixWeight,
)
from backend.schemas.strict import Strict


class DreamBoothParams(Strict):
    """Hyper-parameters; the paper's values for SD 1.x stand in the descriptions (methods.md 2)."""

    steps: Annotated[int, Field(ge=1, le=20000, description="optimiser steps (paper: about 1000)")] = 800
    batch_size: BatchSize = 1
    learning_rate: Annotated[
        float, Field(gt=0, le=0.1, description="of the denoiser (paper: 5e-6 on SD 1.x)")
    ] = 5e-6
    text_encoder: Annotated[bool, Field(description="train the text encoder and the word's vector too")] = (
        False
    )
    text_learning_rate: Annotated[
        float, Field(gt=0, le=0.1, description="of the text encoder and the word (usual: 2e-6)")
    ] = 2e-6
    train_token: Annotated[
        bool,
        Field(
            description="learn the word's vector too, where a rare word says too little by itself (not in the paper)"
        ),
    ] = False
    token_learning_rate: Annotated[
        float,
        Field(gt=0, le=1.0, description="of the word's vector, where it is learned without the text encoder"),
    ] = 5e-4
    prior: Prior = "generated"
    prior_weight: PriorWeight = 1.0
    prior_images: PriorImages = 200
    prior_steps: PriorSteps = 12
    gradient_checkpointing: Annotated[
        bool,
        Field(description="compute activations again in the backward pass: less memory, a third more time"),
    ] = False
    ema_decay: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="result: a moving average of the weights, not the last ones; 0: off (usual: 0.999)",
        ),
    ] = 0.0
    optimiser: Annotated[
        Literal["adamw", "adamw-8bit"],
        Field(
            description="adamw-8bit: a quarter of the optimiser's memory; needs a CUDA GPU and bitsandbytes"
        ),
    ] = "adamw"
    flip: Flip = True
    unmasked_weight: UnmaskedWeight = 1.0
    collages: Collages = 0.0
    unmix_weight: UnmixWeight = 0.0
    companions: Companions = 0.0
    max_grad_norm: MaxGradNorm = 1.0
    preview_every: PreviewEvery = 50


LEARNT = {"batch_size": 4, "train_token": True, "token_learning_rate": 2e-3, "prior_weight": 0.3}
"""On toyworld rare words are filler, whose states hardly differ from no word at all: with the word held and lambda 1
the prior keeps the subject out (similarity 0.1 and 0.0 of two subjects; without a prior 0.9 and 1.0). This way it was
0.7 of the harder one.
"""
SMALL: Presets = {
    "quick": {"steps": 150, "learning_rate": 3e-4, **LEARNT, "prior_images": 16, "prior_steps": 10},
    "balanced": {"steps": 300, "learning_rate": 3e-4, **LEARNT},
    "thorough": {"steps": 1000, "learning_rate": 1e-4, **LEARNT, "prior_images": 48},
}
STABLE_DIFFUSION: Presets = {
    "quick": {"steps": 400, "learning_rate": 5e-6, "gradient_checkpointing": True, **FEW_DRAWN},
    "balanced": {"steps": 800, "learning_rate": 5e-6, "gradient_checkpointing": True, **DRAWN},
    "thorough": {
        "steps": 1000,
        "learning_rate": 2e-6,
        "text_encoder": True,
        "text_learning_rate": 2e-6,
        "gradient_checkpointing": True,
        **DRAWN,
    },
}
"""Balanced: 5e-6 and lambda 1 as in the paper (section 4), 800 steps as diffusers' script with a prior term. Thorough:
the paper's 1000 steps, and the text encoder at the rate of that script. The word is a rare one and stays it.
"""


def side(params: DreamBoothParams) -> Literal["text", "weights"]:
    """Every weight changes."""
    return "weights"


CARD = MethodCard(
    name="dreambooth",
    title="DreamBooth",
    description=(
        "Tunes the whole denoiser: the closest likeness, and the largest file and the most drift; "
        "for one subject that must be right."
    ),
    source="Ruiz et al., DreamBooth: Fine Tuning Text-to-Image Diffusion Models, CVPR 2023 (arXiv 2208.12242)",
    min_photos=3,
    max_photos=100,
    params_type=DreamBoothParams,
    presets={"small": SMALL, "stable-diffusion": STABLE_DIFFUSION},
    side=side,
)
