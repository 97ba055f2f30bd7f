"""TIES-merging (Yadav et al., NeurIPS 2023)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backend.schemas.merges.card import MergeCard
from backend.schemas.strict import Strict


class TiesParams(Strict):
    """How much of each change takes part."""

    density: Annotated[float, Field(gt=0, le=1, description="share of the largest numbers that stay")] = 0.2
    strength: Annotated[float, Field(ge=0, le=2, description="of the merged change")] = 1.0


CARD = MergeCard(
    name="ties",
    title="TIES",
    description=(
        "Keeps the largest numbers of each change, lets them vote for a sign in every place and takes the mean of "
        "those that agree. Concepts disturb one another less than in a sum, and each becomes weaker."
    ),
    source="Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023 (arXiv 2306.01708)",
    takes="additive",
    makes="as-inputs",
    params_type=TiesParams,
)
