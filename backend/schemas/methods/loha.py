"""LoHa (Hyeon-Woo et al., FedPara, ICLR 2022, arXiv 2108.06098): changes that are products of two low-rank matrices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from backend.schemas.methods.card import MethodCard
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
)
from backend.schemas.strict import Strict


class LohaParams(Strict):
    """Hyper-parameters; LyCORIS's usual values for SD 1.x stand in the descriptions."""

    steps: Annotated[int, Field(ge=1, le=20000, description="optimiser steps (usual: 500)")] = 500
    batch_size: BatchSize = 4
    rank: Annotated[
        int, Field(ge=1, le=256, description="of both matrices; their product may have the square of it")
    ] = 4
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
    collages: Collages = 0.0
    companions: Companions = 0.0
    max_grad_norm: MaxGradNorm = 1.0
    preview_every: PreviewEvery = 50

    @property
    def text_encoder(self) -> bool:
        """It is never trained."""
        return False


PRESETS: dict[Literal["quick", "balanced", "thorough"], dict[str, Any]] = {
    "quick": {
        "steps": 150,
        "learning_rate": 2e-3,
        "token_learning_rate": 2e-3,
        "prior_images": 16,
        "prior_steps": 10,
    },
    "balanced": {"steps": 300, "learning_rate": 2e-3, "token_learning_rate": 2e-3},
    "thorough": {
        "steps": 1000,
        "rank": 8,
        "learning_rate": 1e-3,
        "token_learning_rate": 2e-3,
        "prior_images": 48,
    },
}


def side(params: LohaParams) -> Literal["text", "weights"]:
    """Keys and values of the cross-attention alone are text side."""
    return "text" if params.attention == "key-value" else "weights"


CARD = MethodCard(
    name="loha",
    title="LoHa",
    description=(
        "Learns changes of the attention layers that are products of two thin ones, so that a file as small as LoRA's "
        "holds richer changes; for detail that LoRA of the same size misses."
    ),
    source="Hyeon-Woo et al., FedPara: Low-Rank Hadamard Product, ICLR 2022 (arXiv 2108.06098)",
    min_photos=3,
    max_photos=100,
    params_type=LohaParams,
    presets=PRESETS,
    side=side,
)
