"""Training requests, and the pinned spec a worker gets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from backend.schemas.bases import JudgesDescription
from backend.schemas.strict import Id, Strict

Preset = Literal["quick", "balanced", "thorough", "together", "faces"]
"""Every method has the first three; ``together`` and ``faces`` have who gains by them."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
PromptText = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000)]


class TrainingCreate(Strict):
    """``POST /trainings``. ``params`` override the preset's. Empty ``previews``: the base's example prompts."""

    concepts: Annotated[list[Id], Field(min_length=1, max_length=8)]
    method: str = "custom-diffusion"
    base: str | None = None
    preset: Preset = "balanced"
    params: dict[str, Any] = Field(default_factory=dict)
    seed: Seed | None = None
    previews: Annotated[list[PromptText], Field(max_length=4)] = Field(default_factory=list)
    calibrate: bool | None = Field(
        default=None,
        description="find the scale that suits the weights afterwards, where the base model has judges; "
        "None: as this studio is set",
    )
    dry_run: bool = False


class PinnedFile(Strict):
    """An input file by content: the worker refuses a file whose bytes differ (``input_invalid``)."""

    id: str
    storage_key: str
    sha256: str


class PinnedConcept(Strict):
    id: Id
    token: str
    class_noun: str
    kind: Literal["subject", "style"]
    photos: list[PinnedFile]


class TrainSpec(Strict):
    """Spec of a ``train`` job: everything the result depends on."""

    spec_version: Literal[1] = 1
    concepts: list[PinnedConcept]
    method: str
    base: str
    base_hash: str
    params: dict[str, Any]
    seed: Seed
    calibration: JudgesDescription | None = Field(
        default=None, description="who finds the scale of the weights afterwards; None: nobody"
    )
    previews: list[str] = Field(description="prompts in encoder text: placeholders as `<token>`, at most 4")


class TrainingForecast(Strict):
    """Answer of a dry run: what a training would do and cost, from earlier jobs of this machine where there are any."""

    steps: int
    prior_images: int = Field(
        description="the base model's own pictures that it uses, with those that subjects are shown in beside other "
        "things"
    )
    images_to_draw: int = Field(
        description="of these, how many must be drawn first; others are kept from trainings before"
    )
    expected_s: float | None
    size_bytes: int | None
    basis: str = Field(description="a sentence: what the estimate rests on")
