"""Generation requests, the pinned spec, and the recipe of an image."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.presence import Presence, PresenceCheck
from backend.schemas.strict import Id, Strict
from backend.schemas.trainings import PinnedFile, PromptText, Seed

Scale = Annotated[float, Field(ge=0.0, le=2.0)]


class Gate(Strict):
    """When a gated concept (Perfusion) answers: a token opens it half where it is ``bias`` alike, 1 being the word
    itself; ``temperature`` says how softly.
    """

    bias: Annotated[float, Field(ge=0.0, le=2.0)]
    temperature: Annotated[float, Field(gt=0.0, le=10.0)]


class WeightsChoice(Strict):
    id: Id
    scale: Scale | None = Field(
        default=None,
        description="None: the weights' own (`manifest.scale`) for a concept alone, 1 among several",
    )
    gate: Gate | None = Field(default=None, description="None: as the weights were made; gated methods only")


class ActingWeights(Strict):
    """A choice that was made: the scale is known."""

    id: Id
    scale: Scale
    gate: Gate | None = None


Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Region(Strict):
    """A box of the picture and what stands in it. Edges in shares of the picture, from its upper left corner."""

    x: Annotated[float, Field(allow_inf_nan=False)]
    y: Annotated[float, Field(allow_inf_nan=False)]
    width: Annotated[float, Field(allow_inf_nan=False)]
    height: Annotated[float, Field(allow_inf_nan=False)]
    prompt: PromptText = Field(
        description="who is there: a concept, or words; the rest is the picture's prompt"
    )
    weights: Annotated[list[WeightsChoice], Field(max_length=8)] | None = Field(
        default=None, description="None: those of the request, else the newest of each token"
    )


class GenerationCreate(Strict):
    """``POST /generations``. ``None`` means: the default of the base (or of the weights)."""

    prompt: PromptText
    negative_prompt: PromptText = ""
    base: str | None = None
    weights: Annotated[list[WeightsChoice], Field(max_length=8)] | None = None
    num_images: Annotated[int, Field(ge=1, le=64)] = 4
    seed: Seed | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=200)] | None = None
    guidance_scale: Annotated[float, Field(ge=1.0, le=30.0)] | None = None
    scheduler: str | None = None
    width: Annotated[int, Field(ge=8, le=4096)] | None = None
    height: Annotated[int, Field(ge=8, le=4096)] | None = None
    regions: Annotated[list[Region], Field(max_length=8)] = Field(
        default_factory=list,
        description="boxes in which one thing or concept stands; several without a merge",
    )
    base_share: Share = Field(
        default=0.0,
        description="what the picture's own prompt keeps inside the boxes; 0: nothing, 1: everything",
    )
    late_base_share: Share | None = Field(
        default=None, description="the same in the last step, straight in between; None: as in the first"
    )
    region_passes: Literal["auto", "one", "each"] = Field(
        default="auto",
        description="one: all boxes in one pass of the denoiser, for boxes side by side; each: a pass for every box, "
        "for boxes anywhere; auto: one where the base model would put things there by itself",
    )
    attention_guidance: Annotated[float, Field(ge=0.0, le=10.0, allow_inf_nan=False)] = Field(
        default=0.0,
        description="move the picture, early on, to where each of its concepts is read; 0: off, 1: the paper's step "
        "(Attend-and-Excite)",
    )
    attention_concepts: Annotated[list[Id], Field(max_length=32)] = Field(
        default_factory=list,
        description="to which subjects of the prompt `attention_guidance` moves the picture; none: to all",
    )
    check: bool = Field(default=False, description="look at every picture: is each of its concepts there?")
    retry_until_present: Annotated[int, Field(ge=0, le=8)] = Field(
        default=0,
        description="other seeds to try until all are there, at most so many a picture; needs `check`",
    )
    guide_missing: bool = Field(
        default=False,
        description="guide attention, in the tries after a failed one, to the concepts that were missing or fused; "
        "needs `retry_until_present`",
    )


RegionPasses = Literal["one", "each"]


class PinnedWeights(Strict):
    file: PinnedFile
    scale: float
    gate: Gate | None = None
    tokens: list[str]
    concepts: list[Id]


class PinnedRegion(Strict):
    """A region as it is drawn: ``weights`` act on ``text``, inside the box."""

    x: float
    y: float
    width: float
    height: float
    prompt: str = Field(description="as the person wrote it")
    text: str = Field(
        description="built from the whole prompt, as the text encoder reads it (methods.md 13.5)"
    )
    weights: list[ActingWeights]


class Layout(Strict):
    """A picture with regions. ``whole``: the weights that act on the picture's own text, which has class nouns for
    what stands in the regions, or with a pass for each nothing of it.
    """

    regions: Annotated[list[PinnedRegion], Field(min_length=1)]
    whole: list[ActingWeights]
    base_share: float
    late_base_share: float
    passes: RegionPasses = "one"


class GuidedAttention(Strict):
    """How attention was guided in a picture that another try drew than the first: to ``concepts`` alone."""

    scale: float
    concepts: Annotated[list[Id], Field(min_length=1)]


class GenerateSpec(Strict):
    """Spec of a ``generate`` job. Image ``i`` draws with seed ``(seed + i) mod 2**32``. All ``weights`` act on
    ``text`` where there is no ``layout``.
    """

    spec_version: Literal[1] = 1
    prompt: str = Field(description="as the person wrote it, with @tokens")
    text: str = Field(description="as the text encoder reads it: `<token> class-noun`")
    negative_prompt: str
    base: str
    base_hash: str
    weights: list[PinnedWeights]
    num_images: int
    seed: Seed
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    attention_guidance: float = 0.0
    attention_concepts: list[Id] = Field(default_factory=list, description="none: all subjects")
    layout: Layout | None = None
    check: PresenceCheck | None = None


class ImageRecipe(Strict):
    """All that is needed to draw one image again; stored in its row and in its PNG. ``weights`` act on ``text``, those
    of a region on the region's.
    """

    prompt: str
    text: str
    negative_prompt: str
    base: str
    base_hash: str
    weights: list[ActingWeights]
    seed: Seed
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    code_version: str
    regions: list[PinnedRegion] = Field(default_factory=list)
    base_share: float = 0.0
    late_base_share: float | None = None
    region_passes: RegionPasses = "one"
    attention_guidance: float = 0.0
    attention_concepts: list[Id] = Field(
        default_factory=list, description="to which subjects attention was guided; none: to all"
    )
    presence: list[Presence] = Field(default_factory=list, description="who is there, where that was asked")


class SchedulerInfo(Strict):
    """``GET /schedulers``."""

    name: Literal["ddim", "dpmsolver++", "euler", "unipc"]
    title: str
    description: str


SCHEDULERS: tuple[SchedulerInfo, ...] = (
    SchedulerInfo(
        name="dpmsolver++",
        title="DPM-Solver++ (2M)",
        description="Second-order; the usual choice: good from 15 steps on.",
    ),
    SchedulerInfo(
        name="ddim", title="DDIM", description="First-order and deterministic; the reference of many papers."
    ),
    SchedulerInfo(
        name="euler",
        title="Euler",
        description="First-order in sigma; soft pictures, forgiving at few steps.",
    ),
    SchedulerInfo(
        name="unipc", title="UniPC", description="Predictor and corrector; the strongest below 12 steps."
    ),
)
