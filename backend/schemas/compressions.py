"""Requests that make weights smaller, the pinned spec, and the report that comes with the new weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.generations import PinnedWeights
from backend.schemas.strict import Id, Strict
from backend.schemas.trainings import PinnedConcept
from backend.schemas.weights import Compression, Criterion, Precision

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class CompressionCreate(Strict):
    """``POST /compressions``. Exactly one of ``rank``, ``nuclear``, ``energy``, ``max_bytes`` and ``token_only`` says
    how much is kept.
    """

    weights: Id
    method: Literal["svd"] = "svd"
    rank: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        default=None, description="the same rank for every site; a site that has fewer is kept whole"
    )
    nuclear: Share | None = Field(
        default=None, description="share of the sum of each site's singular values; the paper's choice is 0.6"
    )
    energy: Share | None = Field(
        default=None, description="share of the sum of each site's squared singular values"
    )
    max_bytes: Annotated[int, Field(ge=1, le=2**40)] | None = Field(
        default=None, description="size of the file; shared out among the sites by what each byte keeps"
    )
    token_only: bool = Field(default=False, description="keep the words and no change of the model")
    precision: Precision = Field(default="float16", description="of what is stored")


class CompressSpec(Strict):
    """Spec of a ``compress`` job. ``weights`` holds one."""

    spec_version: Literal[1] = 1
    weights: Annotated[list[PinnedWeights], Field(min_length=1, max_length=1)]
    concepts: list[PinnedConcept]
    compression: Compression
    base: str
    base_hash: str


class SiteCompression(Strict):
    """What was kept of one site. ``form``: ``whole`` where a matrix takes no more room than its factors, ``none`` where
    nothing was kept.
    """

    site: str
    shape: list[int]
    full_rank: int
    rank: int
    form: Literal["whole", "factors", "none"]
    bytes: int
    discarded_energy: float = Field(description="share of the site's squared norm that was cut off")
    relative_error: float = Field(description="of what is stored, rounding included: ||dW - dW'|| / ||dW||")


class SizeAndError(Strict):
    """A point of size against fidelity."""

    bytes: int
    relative_error: float


class CompressionReport(Strict):
    """``report.compression`` of weights that were made smaller."""

    criterion: Criterion
    value: float
    precision: Precision
    bytes_before: int
    bytes_after: int
    discarded_energy: float = Field(description="share of the squared norm of all changes that was cut off")
    relative_error: float = Field(description="of all changes together, rounding included")
    sites: list[SiteCompression]
    one_rank: SizeAndError | None = Field(
        default=None,
        description="the largest rank that all sites could have had within the budget, for comparison",
    )
    curve: list[SizeAndError] = Field(
        default_factory=list, description="how large a file keeps how much, by other budgets"
    )
