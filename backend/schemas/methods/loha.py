"""LoHa (Hyeon-Woo et al., FedPara, ICLR 2022, arXiv 2108.06098): changes that are products of two low-rank matrices."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backend.schemas.methods.attention_adapter import AttentionAdapterParams, side
from backend.schemas.methods.card import MethodCard, Presets
from backend.schemas.methods.prior_source import DRAWN, FEW_DRAWN


class LohaParams(AttentionAdapterParams):
    """Hyper-parameters; LyCORIS's usual values for SD 1.x stand in the descriptions."""

    rank: Annotated[
        int, Field(ge=1, le=256, description="of both matrices; their product may have the square of it")
    ] = 4


SMALL: Presets = {
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
STABLE_DIFFUSION: Presets = {
    "quick": {"steps": 400, "rank": 8, "alpha": 4.0, "learning_rate": 2e-4, **FEW_DRAWN},
    "balanced": {"steps": 800, "rank": 8, "alpha": 4.0, "learning_rate": 2e-4, **DRAWN},
    "thorough": {"steps": 1600, "rank": 16, "alpha": 8.0, "learning_rate": 2e-4, **DRAWN},
}
"""Rate, rank and alpha are those of LyCORIS's example for SD 1.x, and so is the batch of eight (here four photos and
four prior images); steps are DreamBooth's.
"""


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
    presets={"small": SMALL, "stable-diffusion": STABLE_DIFFUSION},
    side=side,
)
