"""Evaluation requests, the pinned spec a worker gets, and the report it writes (methods.md 14)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.bases import JudgesDescription
from backend.schemas.generations import PinnedWeights
from backend.schemas.strict import Id, Strict
from backend.schemas.trainings import PinnedConcept, PromptText

PROMPTS = (
    "a photo of {} on the beach",
    "a photo of {} in the snow",
    "a photo of {} on grass",
    "a photo of {} in the city",
    "a photo of {} in a room",
    "a photo of {} at night",
)
"""Where a request names none and the base model has fewer than two examples; ``{}`` stands for the concept."""
STYLE_PROMPTS = (
    "a dog on the beach in the style of {}",
    "a cat in the snow in the style of {}",
    "a car in the city in the style of {}",
    "a teapot in a room in the style of {}",
    "an owl at night in the style of {}",
    "a horse on grass in the style of {}",
)
"""The same for a style."""
STYLE_NOUN = "art"
MIN_PROMPTS, MAX_PROMPTS = 2, 25
"""Drift is measured within the pictures of one seed, which needs two; 25 are DreamBooth's (methods.md 14.2)."""


class EvaluationCreate(Strict):
    """``POST /evaluations``. Empty ``prompts``: the base's examples. ``num_images`` are drawn of each prompt."""

    weights: Annotated[list[Id], Field(min_length=1, max_length=4)]
    prompts: Annotated[list[PromptText], Field(max_length=MAX_PROMPTS)] = Field(
        default_factory=list, description="each with one `{}` where the concept stands; none, or at least two"
    )
    num_images: int = Field(default=4, ge=2, le=16, description="of each prompt, each with a seed of its own")


class EvaluateSpec(Strict):
    """Spec of an ``evaluate`` job: everything the report depends on. Seeds are fixed, so that reports compare."""

    spec_version: Literal[1] = 1
    base: str
    base_hash: str
    judges: JudgesDescription
    weights: list[PinnedWeights]
    concepts: list[PinnedConcept] = Field(
        description="what the weights teach, with the photos to compare with"
    )
    prompts: list[str] = Field(description="for subjects; empty where there is none")
    style_prompts: list[str] = Field(description="for styles; empty where there is none")
    num_images: int


class Measure(Strict):
    """One measure on its scale. ``raw`` is what the judge says, ``zero`` and ``one`` what it says of the anchors:
    ``value = (raw - zero) / (one - zero)``. The spread is over image seeds; all three are null where the anchors
    do not differ, because the judge then cannot tell.
    """

    value: float | None
    deviation: float | None = Field(description="sample deviation over image seeds, on the scale")
    half_width_95: float | None = Field(description="half of the 95 % interval (Student), on the scale")
    per_seed: list[float] = Field(description="on the scale")
    raw: float
    zero: float
    one: float


class ConceptReport(Strict):
    """What one concept's weights do, by three measures."""

    weights: Id
    concept: Id
    subject_similarity: Measure = Field(
        description="0: the base model with the class noun alone; 1: the photos among themselves. "
        "For a style its place is taken by the likeness of whole pictures"
    )
    prompt_similarity: Measure = Field(
        description="0: the base model's pictures against an unrelated prompt; 1: against their own"
    )
    drift: Measure = Field(
        description="KID of class pictures. 0: two sets of the base model's own; 1: as far off as the photos are"
    )


class EvaluationReport(Strict):
    """What the worker measured. ``num_images`` of each of ``prompts``, for every one of ``concepts``."""

    judges: JudgesDescription
    prompts: list[str]
    num_images: int
    num_inference_steps: int
    concepts: Annotated[list[ConceptReport], Field(min_length=1)]


class Evaluation(Strict):
    """``GET /evaluations/{id}``."""

    id: Id
    weights: list[Id]
    base: str
    base_hash: str
    report: EvaluationReport
    job: Id
    created_at: datetime
