"""Weights: the manifest in the file's header and the resource of the API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from backend.schemas.strict import Id, Strict

Side = Literal["text", "weights"]
"""Whether a concept only changes the text keys and values, or weights of the denoiser (design 1)."""


Criterion = Literal["rank", "nuclear", "energy", "bytes", "token-only"]
Precision = Literal["float32", "float16", "int8"]


class TaughtToken(Strict):
    """One placeholder token that weights teach: ``<token>`` in the encoder's text, ``@token`` in a prompt."""

    token: str
    class_noun: str
    kind: Literal["subject", "style"]
    vectors: int = Field(
        default=1, ge=0, description="rows of the embedding table; 0: the class noun itself was taught"
    )
    layers: list[str] = Field(
        default_factory=list,
        description="where the vectors differ from layer to layer: names of the cross-attention layers, in order",
    )


class Compression(Strict):
    """How weights were made smaller than those they come from: what each site's change was cut to, and how its
    factors are stored. ``value``: the rank, the share (0..1) of the sum of singular values (``nuclear``) or of their
    squares (``energy``), or the most bytes of the file; 0 where the word alone was kept.
    """

    method: Literal["svd"] = "svd"
    criterion: Criterion
    value: float
    precision: Precision


class WeightsManifest(Strict):
    """The header ``moongate`` of the native safetensors file: self-describing, without private text or paths."""

    format_version: Literal[1] = 1
    method: str
    side: Side
    base: str
    base_family: str
    base_hash: str
    prediction_type: Literal["epsilon", "v_prediction", "flow"]
    tokens: list[TaughtToken]
    params: dict[str, Any]
    seed: int
    steps: int = Field(description="optimiser steps that were really made")
    parents: list[str] = Field(default_factory=list, description="ids of the weights these were made from")
    compression: Compression | None = None
    merge: str | None = Field(default=None, description="the merge that made them of their parents")
    origin: Literal["kohya", "diffusers"] | None = Field(
        default=None, description="the layout of another program's file that they were read from"
    )
    scale: float = Field(
        default=1.0, ge=0.0, le=2.0, description="what a prompt gets that names none; found by calibration"
    )
    code_version: str


class TensorShape(Strict):
    """Type and shape of one tensor of a file."""

    dtype: Literal["F32", "F16", "BF16", "I8"]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=2**31)]], Field(max_length=4)]


class ReadWeights(Strict):
    """What was read of an uploaded native file."""

    manifest: WeightsManifest
    tensors: dict[str, TensorShape]


class ReadForeign(Strict):
    """What was read of an uploaded file of another program. ``starts``: where each tensor's bytes begin in the file;
    ``adapter``: what diffusers says of the adapter in the header, as it stands there.
    """

    tensors: dict[str, TensorShape]
    starts: dict[str, int]
    adapter: dict[str, Any]


class Weights(Strict):
    """``GET /weights/{id}``."""

    id: Id
    concepts: list[Id]
    manifest: WeightsManifest
    size_bytes: int
    sha256: str
    parents: list[Id]
    report: dict[str, Any]
    job: Id | None = Field(description="the job that made them; null when they were imported")
    file_url: str
    created_at: datetime


ChangeGroup = Literal["cross-attention", "self-attention", "rest", "text-encoder", "tokens"]
"""The paper's three groups of the denoiser (methods.md 3), the text encoder but its table of words, and the taught
words.
"""


class SiteChange(Strict):
    """Relative change of one changed layer, ``||W' - W||_F / ||W||_F`` (methods.md 3)."""

    site: str = Field(description="path of the module in the denoiser, or in the text encoder")
    group: ChangeGroup
    shape: list[int] = Field(description="of the weight; one number for the gain of a norm")
    relative_change: float = Field(description="of the weight alone")
    bias_change: float | None = Field(
        default=None, description="of the bias alone; null where there is none or it is next to zero"
    )
    pooled_change: float | None = Field(default=None, description="of weight and bias together")
    singular_values: list[float] = Field(
        description="of the weight's difference, largest first, at most 32; none of a gain"
    )
    energy_by_rank: list[float] = Field(description="share of the squared norm kept by the first k values")


class GroupChange(Strict):
    """How much a group changed; what did not change counts as 0."""

    group: ChangeGroup
    tensors: int = Field(description="weights, biases and gains that are counted; placeholders in tokens")
    numbers: int = Field(description="elements of all tensors of the group")
    left_out: int = Field(description="tensors next to zero, whose relative change would mean nothing")
    mean: float = Field(description="of the relative changes of the tensors")
    median: float
    pooled_mean: float = Field(description="mean over layers, weight and bias of each taken together")


class WeightsAnalysis(Strict):
    """``GET /weights/{id}/analysis``."""

    sites: list[SiteChange] = Field(description="changed layers, largest relative change first")
    mean_by_group: dict[str, float] = Field(description="the mean of each of ``groups``")
    token_change: dict[str, float] = Field(description="relative change of each V* from its start row")
    groups: list[GroupChange] = Field(
        default_factory=list, description="empty in analyses made before this field was"
    )
