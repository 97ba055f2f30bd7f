"""Parameters that adapters of attention layers have in common: LoHa and LoKr, trained on photos as DreamBooth is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.methods.prior_source import Prior
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


class AttentionAdapterParams(Strict):
    """Hyper-parameters; LyCORIS's usual values for SD 1.x stand in the descriptions."""

    steps: Annotated[int, Field(ge=1, le=20000, description="optimiser steps (usual: 500)")] = 500
    batch_size: BatchSize = 4
    rank: Annotated[int, Field(ge=1, le=256)] = 4
    alpha: Annotated[
        float, Field(ge=0, le=4096, description="the change is multiplied by alpha / rank; 0: alpha = rank")
    ] = 0.0
    attention: Annotated[
        Literal["all", "cross", "key-value"],
        Field(description="attention layers; key-value alone is text side: nothing has to be installed"),
    ] = "all"
    learning_rate: Annotated[float, Field(gt=0, le=0.1, description="of the factors (usual: 1e-4)")] = 1e-4
    token_learning_rate: Annotated[
        float,
        Field(ge=0, le=1.0, description="of the word's vector; 0: it stays the rare word it starts from"),
    ] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=1, description="AdamW decay of the factors")] = 0.01
    prior: Prior = "generated"
    prior_weight: PriorWeight = 1.0
    prior_images: PriorImages = 24
    prior_steps: PriorSteps = 12
    flip: Flip = True
    unmasked_weight: UnmaskedWeight = 1.0
    collages: Collages = 0.0
    unmix_weight: UnmixWeight = 0.0
    companions: Companions = 0.0
    max_grad_norm: MaxGradNorm = 1.0
    preview_every: PreviewEvery = 50

    @property
    def text_encoder(self) -> bool:
        """It is never trained."""
        return False


def side(params: AttentionAdapterParams) -> Literal["text", "weights"]:
    """Keys and values of the cross-attention alone are text side."""
    return "text" if params.attention == "key-value" else "weights"
