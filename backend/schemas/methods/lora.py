"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): low-rank changes of chosen layers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from backend.schemas.methods.card import MethodCard, Presets
from backend.schemas.methods.prior_source import DRAWN, Prior
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


class LoraParams(Strict):
    """Hyper-parameters; usual values for SD 1.x stand in the descriptions (methods.md 8)."""

    steps: Annotated[int, Field(ge=1, le=20000, description="optimiser steps (usual: 500)")] = 500
    batch_size: BatchSize = 4
    rank: Annotated[
        int, Field(ge=1, le=1024, description="of each change; more learns more and takes more space")
    ] = 4
    alpha: Annotated[
        float, Field(ge=0, le=4096, description="the change is multiplied by alpha / rank; 0: alpha = rank")
    ] = 0.0
    basis: Annotated[
        Literal["learned", "orthogonal"],
        Field(
            description="directions of the input that a change sees: learned, or columns of a fixed basis, of which "
            "concepts that shall be added up have different ones"
        ),
    ] = "learned"
    first_column: Annotated[
        int,
        Field(
            ge=0,
            le=65535,
            description="of the orthogonal basis; as many as the rank are taken, another concept starts behind them",
        ),
    ] = 0
    basis_seed: Annotated[
        int,
        Field(ge=0, lt=2**31, description="of the orthogonal basis; the same for all that shall be added up"),
    ] = 0
    attention: Annotated[
        Literal["all", "cross", "key-value", "none"],
        Field(description="attention layers; key-value alone is text side: nothing has to be installed"),
    ] = "all"
    feed_forward: Annotated[bool, Field(description="the feed-forward layers behind attention too")] = False
    convolution: Annotated[bool, Field(description="the convolutions between attention layers too")] = False
    use_dora: Annotated[
        bool,
        Field(description="DoRA: learn the length of each row of a matrix by itself, beside its direction"),
    ] = False
    text_encoder: Annotated[bool, Field(description="the attention of the text encoder too")] = False
    train_token: Annotated[bool, Field(description="learn the word's vector as well (pivotal tuning)")] = (
        False
    )
    learning_rate: Annotated[float, Field(gt=0, le=0.1, description="of the denoiser (usual: 1e-4)")] = 1e-4
    text_learning_rate: Annotated[
        float, Field(gt=0, le=0.1, description="of the text encoder (usual: 1e-5 to 5e-5)")
    ] = 2e-5
    token_learning_rate: Annotated[
        float, Field(gt=0, le=1.0, description="of the word's vector (usual: 5e-4)")
    ] = 5e-4
    weight_decay: Annotated[float, Field(ge=0, le=1, description="AdamW decay of the change")] = 0.01
    prior: Prior = "generated"
    prior_weight: PriorWeight = 0.0
    prior_images: PriorImages = 24
    prior_steps: PriorSteps = 12
    flip: Flip = True
    unmasked_weight: UnmaskedWeight = 1.0
    collages: Collages = 0.0
    unmix_weight: UnmixWeight = 0.0
    companions: Companions = 0.0
    max_grad_norm: MaxGradNorm = 1.0
    preview_every: PreviewEvery = 50

    @model_validator(mode="after")
    def _one_of_both(self) -> LoraParams:
        if self.use_dora and self.basis == "orthogonal":
            raise ValueError(
                "DoRA moves the lengths of rows, so that its changes never add without crosstalk"
            )
        return self


PIVOTAL = {"train_token": True, "token_learning_rate": 2e-3, "prior_weight": 1.0}
SMALL: Presets = {
    "quick": {"steps": 150, "learning_rate": 1e-3, **PIVOTAL, "prior_images": 16, "prior_steps": 10},
    "balanced": {"steps": 300, "learning_rate": 1e-3, **PIVOTAL},
    "thorough": {"steps": 1000, "rank": 8, "learning_rate": 5e-4, **PIVOTAL, "prior_images": 48},
}
STABLE_DIFFUSION: Presets = {
    "quick": {"steps": 500, "batch_size": 1, "learning_rate": 1e-4},
    "balanced": {"steps": 800, "batch_size": 1, "learning_rate": 1e-4, "prior_weight": 1.0, **DRAWN},
    "thorough": {
        "steps": 2000,
        "batch_size": 1,
        "rank": 8,
        "learning_rate": 1e-4,
        "text_encoder": True,
        "text_learning_rate": 1e-5,
        "train_token": True,
        "token_learning_rate": 5e-4,
        "prior_weight": 1.0,
        **DRAWN,
    },
}
"""Quick: diffusers' DreamBooth-LoRA example, which has no prior term. Balanced: the same with DreamBooth's, and its 800
steps. Thorough: the rates and the 1000 + 1000 steps of cloneofsimo's pivotal tuning (methods.md 8).
"""


def side(params: LoraParams) -> Literal["text", "weights"]:
    """Keys and values of the cross-attention alone are text side; every further layer makes it weight side."""
    further = params.feed_forward or params.convolution or params.text_encoder
    return "text" if params.attention == "key-value" and not further else "weights"


CARD = MethodCard(
    name="lora",
    title="LoRA",
    description=(
        "Learns thin changes of the attention layers, in a file of a few megabytes that other programs read too; "
        "for likeness where Custom Diffusion is not enough."
    ),
    source="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022 (arXiv 2106.09685)",
    min_photos=3,
    max_photos=100,
    params_type=LoraParams,
    presets={"small": SMALL, "stable-diffusion": STABLE_DIFFUSION},
    side=side,
)
