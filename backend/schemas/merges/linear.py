"""The sum of changes (methods.md 8, 13.2)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backend.schemas.merges.card import MergeCard
from backend.schemas.strict import Strict


class LinearParams(Strict):
    """The scales of the weights are the coefficients of the sum."""

    strength: Annotated[
        float, Field(ge=0, le=2, description="of the whole sum; 1 adds the changes as they are")
    ] = 1.0


CARD = MergeCard(
    name="linear",
    title="Sum",
    description=(
        "Adds the changes of all weights, each times its scale. Takes any layers, also of the picture's side; nothing "
        "keeps the concepts from disturbing one another."
    ),
    source="Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023 (arXiv 2212.04089)",
    takes="additive",
    makes="as-inputs",
    params_type=LinearParams,
)
