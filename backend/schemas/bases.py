"""Base models, as workers register them and as the web process shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from backend.schemas.strict import Strict

Backbone = Literal["small", "stable-diffusion"]
"""What presets are tuned for: ``small``, a network of a few million numbers as toyworld's; ``stable-diffusion``, one as
large as those of Stable Diffusion (1.x, 2.x, XL), for which the papers give theirs. See decision 10.
"""
SHIPPED: Backbone = "small"
"""That of toyworld, and of every base model until a worker says otherwise."""


class SamplingDefaults(Strict):
    """What a generation uses where its request is silent."""

    num_inference_steps: int = 20
    guidance_scale: float = 5.0
    scheduler: str = "dpmsolver++"


class JudgesDescription(Strict):
    """Who measures: a number means nothing without its judge."""

    name: str
    hash: str = Field(description="sha256 over the judges' weights, hexadecimal")


class BaseDescription(Strict):
    """A base model as a worker finds it in a folder, without loading its weights."""

    id: str
    family: str
    title: str
    resolution: int = Field(description="side of the training pictures, pixels")
    size_multiple: int = Field(description="width and height must be multiples of this, pixels")
    max_size: int = Field(description="largest width or height that is accepted, pixels")
    hash: str = Field(description="sha256 over the names and bytes of all weight files, hexadecimal")
    methods: list[str]
    defaults: SamplingDefaults
    prompt_limit_tokens: int = Field(
        description="positions of the text encoder, start and end token included"
    )
    tokenizer_json: str = Field(
        description="`tokenizers` serialisation, so that the web counts as the worker does"
    )
    example_prompts: list[str] = Field(default_factory=list, description="`{}` stands for the subject")
    class_nouns: list[str] = Field(
        default_factory=list, description="nouns the base draws well; empty: unknown"
    )
    text_sites: dict[str, list[int]] = Field(
        default_factory=dict,
        description="shape of every key and value matrix of cross-attention, by its site, in the network's order",
    )
    denoiser_shapes: dict[str, list[int]] = Field(
        default_factory=dict, description="shape of every parameter of the denoiser, by its path"
    )
    encoder_shapes: dict[str, list[int]] = Field(
        default_factory=dict,
        description="the same of the text encoder, but for its table of words; paths lack `text_model.`",
    )
    prediction_type: Literal["", "epsilon", "v_prediction", "flow"] = Field(
        default="", description="what the denoiser predicts; empty: an earlier version did not say"
    )
    token_width: int = Field(default=0, description="numbers in a row of the text encoder's token embedding")
    backbone: Backbone = Field(default=SHIPPED, description="whose presets of the methods fit")
    judges: JudgesDescription | None = Field(
        default=None, description="who measures on this base; null: nobody, and evaluations are refused"
    )


class BaseModelInfo(Strict):
    """``GET /bases``."""

    id: str
    family: str
    title: str
    resolution: int
    size_multiple: int
    max_size: int
    hash: str
    methods: list[str]
    defaults: SamplingDefaults
    prompt_limit_tokens: int
    example_prompts: list[str]
    class_nouns: list[str]
    backbone: Backbone = Field(
        default=SHIPPED, description="which of a method's `presets_by_backbone` a training on it takes"
    )
    judges: JudgesDescription | None = Field(
        default=None, description="who measures on this base; null: nobody"
    )
    available: bool = Field(description="a live worker has it")
