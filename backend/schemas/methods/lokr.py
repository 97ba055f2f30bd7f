"""LoKr (Yeh et al., LyCORIS, ICLR 2024, arXiv 2309.14859): changes that repeat one block in many sizes."""

from __future__ import annotations

from math import isqrt
from typing import Annotated

from pydantic import Field

from backend.schemas.methods.attention_adapter import AttentionAdapterParams, side
from backend.schemas.methods.card import MethodCard, Presets
from backend.schemas.methods.prior_source import DRAWN, FEW_DRAWN


class LokrParams(AttentionAdapterParams):
    """Hyper-parameters; LyCORIS's usual values for SD 1.x stand in the descriptions."""

    rank: Annotated[
        int,
        Field(ge=1, le=1024, description="of the block; from half of its larger side on it is whole"),
    ] = 1024
    learning_rate: Annotated[float, Field(gt=0, le=0.1, description="of the factors (usual: 2e-4)")] = 2e-4
    factor: Annotated[
        int,
        Field(
            ge=0,
            le=64,
            description="the block stands so many times above and beside itself in a layer's matrix, or the next "
            "smaller number of times that fits; more is a smaller file; 0: about as often as it has rows "
            "(usual: 4 to 8)",
        ),
    ] = 8


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
        "factor": 4,
        "learning_rate": 1e-3,
        "token_learning_rate": 2e-3,
        "prior_images": 48,
    },
}
STABLE_DIFFUSION: Presets = {
    "quick": {"steps": 400, "learning_rate": 2e-4, **FEW_DRAWN},
    "balanced": {"steps": 800, "learning_rate": 2e-4, **DRAWN},
    "thorough": {"steps": 1600, "factor": 4, "learning_rate": 2e-4, **DRAWN},
}
"""Rate, whole blocks, factors of 4 to 8 and the batch of eight (here four photos and four prior images) are those of
LyCORIS's example and guidelines for SD 1.x; steps are DreamBooth's.
"""


def split(size: int, factor: int) -> tuple[int, int]:
    """(small, large) with ``small large = size``: small is the largest divisor that exceeds neither ``factor`` (0: no
    bound) nor the root of ``size``.
    """
    most = min(factor or size, isqrt(size))
    small = next(each for each in range(most, 0, -1) if size % each == 0)
    return small, size // small


CARD = MethodCard(
    name="lokr",
    title="LoKr",
    description=(
        "Learns one block of each attention layer's change and how strongly it is repeated, so that a small file "
        "holds changes of any rank; for likeness close to full tuning where disk is short."
    ),
    source="Yeh et al., Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation, "
    "ICLR 2024 (arXiv 2309.14859)",
    min_photos=3,
    max_photos=100,
    params_type=LokrParams,
    presets={"small": SMALL, "stable-diffusion": STABLE_DIFFUSION},
    side=side,
)
