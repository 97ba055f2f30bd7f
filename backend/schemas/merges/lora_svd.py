"""The sum of low-rank changes, cut again to a low rank (methods.md 8)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backend.schemas.merges.card import MergeCard
from backend.schemas.strict import Strict


class LoraSVDParams(Strict):
    """How much of the sum is kept. The scales of the weights are its coefficients."""

    rank: Annotated[
        int,
        Field(
            ge=0, le=1024, description="of each change of the result; 0: all ranks together, nothing is cut"
        ),
    ] = 0
    strength: Annotated[
        float, Field(ge=0, le=2, description="of the whole sum; 1 adds the changes as they are")
    ] = 1.0


CARD = MergeCard(
    name="lora-svd",
    title="LoRA, cut by SVD",
    description=(
        "Adds the thin changes of LoRA weights, each times its scale, and keeps the best approximation of the rank you "
        "ask for. The result is LoRA again, in a small file; nothing keeps the concepts from disturbing one another."
    ),
    source="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022 (arXiv 2106.09685)",
    takes="lora",
    makes="as-inputs",
    params_type=LoraSVDParams,
)
