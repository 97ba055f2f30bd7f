"""DARE (Yu et al., ICML 2024)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.merges.card import MergeCard
from backend.schemas.strict import Strict


class DareParams(Strict):
    """What is dropped, and how the rest is merged."""

    drop: Annotated[float, Field(ge=0, lt=1, description="rate at which numbers of a change are dropped")] = (
        0.5
    )
    then: Annotated[Literal["linear", "ties"], Field(description="how the rest is merged")] = "linear"
    strength: Annotated[float, Field(ge=0, le=2, description="of the merged change")] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31, description="of what is dropped")] = 0


CARD = MergeCard(
    name="dare",
    title="DARE",
    description=(
        "Drops numbers of each change at random and enlarges the others, so that concepts seldom meet in one place; "
        "then adds them, or merges them by the vote of TIES."
    ),
    source="Yu et al., Language Models are Super Mario, ICML 2024 (arXiv 2311.03099)",
    takes="additive",
    makes="as-inputs",
    params_type=DareParams,
)
