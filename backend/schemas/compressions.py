"""Requests that make weights smaller, the pinned spec, and the report that comes with the new weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.bases import JudgesDescription
from backend.schemas.calibration import Calibration, CalibrationPoint
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
    compare: bool | None = Field(
        default=None,
        description="draw a few pictures with the weights before and after and have the judges compare them, where the "
        "base model has judges and the concepts have photos; None: as this studio is set",
    )


class CompressSpec(Strict):
    """Spec of a ``compress`` job. ``weights`` holds one; ``concepts`` have photos where there are judges."""

    spec_version: Literal[1] = 1
    weights: Annotated[list[PinnedWeights], Field(min_length=1, max_length=1)]
    concepts: list[PinnedConcept]
    compression: Compression
    base: str
    base_hash: str
    judges: JudgesDescription | None = Field(
        default=None, description="who compares pictures from before and after; None: nobody"
    )
    known: Calibration | None = Field(
        default=None, description="what the same judges saw of the weights before, with the same photos"
    )


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


class Similarity(Strict):
    """What the judges saw with the weights before and after, of the same prompts and seeds at the same scale; means
    over the concepts, on the scales of an evaluation.
    """

    before: CalibrationPoint
    after: CalibrationPoint
    known_before: bool = Field(description="`before` is from the calibration of the weights, not drawn again")
    prompts: list[str]
    image_seeds: list[int]
    judges: JudgesDescription


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
    similarity: Similarity | None = Field(
        default=None, description="subject and prompt similarity before and after; null where nobody compared"
    )
