"""SVDiff (Han et al., ICCV 2023, arXiv 2303.11305): shifts of the singular values of weights."""

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


class SVDiffParams(Strict):
    """Hyper-parameters; values of the paper and its reimplementation stand in the descriptions (methods.md 9)."""

    steps: Annotated[int, Field(ge=1, le=20000, description="optimiser steps (paper: 500 to 1000)")] = 1000
    batch_size: BatchSize = 1
    layers: Annotated[
        Literal["all", "linear", "cross", "key-value"],
        Field(
            description="all layers with the gains of norms, the linear ones, those of the cross-attention, "
            "or its keys and values alone, which is text side: nothing has to be installed"
        ),
    ] = "all"
    text_encoder: Annotated[bool, Field(description="the layers of the text encoder too")] = False
    learning_rate: Annotated[
        float, Field(gt=0, le=1.0, description="of the denoiser's singular values (usual: 1e-3)")
    ] = 1e-3
    gain_learning_rate: Annotated[
        float, Field(gt=0, le=1.0, description="of the gains of norms (usual: 1e-6)")
    ] = 1e-6
    text_learning_rate: Annotated[
        float, Field(gt=0, le=1.0, description="of the text encoder's singular values (usual: 1e-3)")
    ] = 1e-3
    prior: Prior = "generated"
    prior_weight: PriorWeight = 1.0
    prior_images: PriorImages = 200
    prior_steps: PriorSteps = 12
    flip: Flip = True
    unmasked_weight: UnmaskedWeight = 1.0
    collages: Collages = 0.0
    unmix_weight: UnmixWeight = 0.0
    companions: Companions = 0.0
    max_grad_norm: MaxGradNorm = 1.0
    preview_every: PreviewEvery = 50


RATES = {"learning_rate": 5e-3, "gain_learning_rate": 1e-3, "text_encoder": True, "text_learning_rate": 5e-3}
"""Tried on two subjects of toyworld. 3e-2 destroys the pictures, 2e-3 is slow for two hundred steps. Without the text
encoder a blue teapot was not learnt where the base draws red ones: its word cannot move.
"""
SMALL: Presets = {
    "quick": {"steps": 200, "batch_size": 4, "prior_images": 16, "prior_steps": 10, **RATES},
    "balanced": {"steps": 400, "batch_size": 4, "prior_images": 24, **RATES},
    "thorough": {
        "steps": 1000,
        "batch_size": 4,
        "prior_images": 48,
        **RATES,
        "learning_rate": 2e-3,
        "text_learning_rate": 2e-3,
    },
}
STABLE_DIFFUSION: Presets = {
    "quick": {"steps": 500, **FEW_DRAWN},
    "balanced": {"steps": 1000, **DRAWN},
    "thorough": {"steps": 1500, "text_encoder": True, **DRAWN},
}
"""The defaults are the reimplementation's rates (1e-3, gains of norms 1e-6), one photo a step and lambda 1; 500 to 1000
steps are the paper's (section 4).
"""


def side(params: SVDiffParams) -> Literal["text", "weights"]:
    """Keys and values of the cross-attention alone are text side; every further layer makes it weight side."""
    return "text" if params.layers == "key-value" and not params.text_encoder else "weights"


CARD = MethodCard(
    name="svdiff",
    title="SVDiff",
    description=(
        "Turns the singular values of every layer up and down: the reach of the whole denoiser in a file of about a "
        "megabyte; for many concepts on little disk, and where few photos would be learnt by heart."
    ),
    source=(
        "Han et al., SVDiff: Compact Parameter Space for Diffusion Fine-Tuning, ICCV 2023 (arXiv 2303.11305)"
    ),
    min_photos=3,
    max_photos=100,
    params_type=SVDiffParams,
    presets={"small": SMALL, "stable-diffusion": STABLE_DIFFUSION},
    side=side,
    small_already=(
        "One number for each singular value is less than two factors of a single component would take."
    ),
)
