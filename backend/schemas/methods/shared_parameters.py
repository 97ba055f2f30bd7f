"""Parameters that several methods have in common: type, range and the words of the form. Defaults are each method's."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

BatchSize = Annotated[int, Field(ge=1, le=64, description="photos a step; as many prior images come along")]
PriorWeight = Annotated[
    float, Field(ge=0, le=10, description="lambda of the prior term (papers: 1); 0 turns it off")
]
PriorImages = Annotated[int, Field(ge=0, le=1000, description="generated class images (papers: 200 to 1000)")]
PriorSteps = Annotated[int, Field(ge=1, le=200, description="solver steps of a prior image")]
Flip = Annotated[bool, Field(description="mirror photos at random; off for lettering and faces")]
UnmaskedWeight = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="what the surroundings of the subject count beside its own 1: below 1 the base model finds it by "
        "its class noun, and what is around it is learned less, at 0 not at all; styles, and concepts whose class "
        "noun the base model does not know, are learned whole",
    ),
]
MaxGradNorm = Annotated[float, Field(gt=0, le=100, description="gradients are clipped to this norm")]
PreviewEvery = Annotated[
    int, Field(ge=0, le=20000, description="steps between previews; 0: first and last only")
]
Collages = Annotated[
    float,
    Field(
        ge=0,
        le=0.9,
        description="where several subjects train together: share of the rows that show two of them side by side "
        "(SVDiff's Cut-Mix: 0.6)",
    ),
]


def _on_collages(weight: float, others: ValidationInfo) -> float:
    if weight > 0 and others.data.get("collages") == 0:
        raise ValueError(
            "There are no collages that it could act on: set collages above 0 too, or this to 0."
        )
    return weight


UnmixWeight = Annotated[
    float,
    Field(
        ge=0,
        le=100,
        description="how strongly each subject's word is kept out of the other's half of a collage, in the maps of the "
        "cross-attention (SVDiff's Unmix; 1 is enough on toyworld); needs collages; 0: off",
    ),
    AfterValidator(_on_collages),
]
"""To stand behind ``collages``, which it looks at."""
Companions = Annotated[
    float,
    Field(
        ge=0,
        le=0.9,
        description="share of the rows that show the subject beside another thing, drawn by the base model, so that it "
        "holds in pictures of several; none for a style, or where concept or base model name no class noun",
    ),
]
