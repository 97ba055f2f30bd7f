"""Requests that merge weights, the pinned spec, the verification report, and the forecast before."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from backend.schemas.generations import PinnedWeights, Scale
from backend.schemas.strict import Id, Strict
from backend.schemas.trainings import PinnedConcept


class MergeChoice(Strict):
    id: Id
    scale: Scale = 1.0


class MergeCreate(Strict):
    """``POST /merges`` and ``POST /merges/forecast``."""

    weights: Annotated[list[MergeChoice], Field(min_length=2, max_length=32)]
    method: str = "closed-form"
    params: dict[str, Any] = Field(default_factory=dict)


class MergeSpec(Strict):
    """Spec of a ``merge`` job. ``renames``: {id of weights: {token in their file: token in the result}}, where two
    files call different concepts alike.
    """

    spec_version: Literal[1] = 1
    weights: Annotated[list[PinnedWeights], Field(min_length=2, max_length=32)]
    concepts: list[PinnedConcept]
    renames: dict[str, dict[str, str]] = Field(default_factory=dict)
    method: str
    params: dict[str, Any]
    base: str
    base_hash: str


class SiteMerge(Strict):
    """What a merge did to one site. Numbers are relative unless they say otherwise; None where a merge has no such
    thing.
    """

    site: str
    change: float = Field(description="||D||_F, absolute")
    rank: int | None = None
    residual: float | None = Field(
        default=None, description="||W C^T - V|| / ||V|| after the cast: what the concepts' words are off by"
    )
    residual_of_change: float | None = Field(
        default=None, description="the same against what the words' change is: ||W C^T - V|| / ||V - W0 C^T||"
    )
    inconsistency: float | None = Field(
        default=None, description="share of the wanted change that concepts contradict one another in"
    )
    drift: float | None = Field(
        default=None, description="||D C_reg^T|| / ||W0 C_reg^T||, measured on the captions"
    )
    drift_predicted: float | None = Field(
        default=None, description="the same from the algebra: tr(R S^-1 R^T)"
    )
    drift_held_out: float | None = Field(default=None, description="the same on captions that were not held")
    stationarity: float | None = Field(
        default=None, description="||D G (I - C^+ C)|| / ||D G||: 0 at the optimum (KKT)"
    )
    discarded_energy: float | None = Field(
        default=None, description="share of the sum's squared norm that was cut off"
    )


class MergedInput(Strict):
    """Weights that went in."""

    id: str
    scale: float
    tokens: list[str] = Field(description="as the result calls them")
    renamed: dict[str, str] = Field(
        default_factory=dict, description="{token in their own file: token in the result}"
    )


class MergeReport(Strict):
    """``report.merge`` of merged weights, and the end of a merge that failed its verification. The numbers beside
    ``sites`` are over all sites together; ``drift`` and ``residual`` are the worst site's.
    """

    merge: str
    inputs: list[MergedInput]
    verified: bool
    failures: list[str] = Field(default_factory=list, description="sentences; empty when verified")
    notes: list[str] = Field(default_factory=list, description="sentences a person should know")
    constraint_rows: int | None = None
    rank: int | None = None
    condition: float | None = Field(default=None, description="strongest over weakest constraint direction")
    captions: int | None = None
    held_rows: int | None = Field(default=None, description="caption features that were held")
    residual: float | None = None
    residual_of_change: float | None = None
    inconsistency: float | None = None
    drift: float | None = None
    drift_predicted: float | None = None
    drift_held_out: float | None = None
    stationarity: float | None = None
    discarded_energy: float | None = Field(
        default=None, description="share of the squared norm of all changes that was cut off"
    )
    seconds: float | None = None
    sites: list[SiteMerge] = Field(default_factory=list)


Verdict = Literal["good", "fair", "poor"]


class SiteForecast(Strict):
    site: str
    drift: float | None = None
    crosstalk: float | None = None
    sign_conflict: float | None = Field(
        default=None, description="of the two weights that have the most opposite signs here, estimated"
    )
    missed: float | None = Field(
        default=None, description="share of what the words learned that is missing or another's"
    )


class PairForecast(Strict):
    """How two of the weights go together. Shares are 0..1."""

    first: Id
    second: Id
    verdict: Verdict
    sentence: str
    token_cosine: float = Field(description="between the text states of the two words")
    overlap: float = Field(
        description="share of the text directions of the first that the second moves too: mean squared cosine of the "
        "principal angles"
    )
    crosstalk: float = Field(
        description="how far each moves the other's words if both were simply added, against what these learned"
    )
    agreement: float = Field(
        description="cosine of what both change, as the words read it: 1 the same, 0 unrelated, -1 opposite"
    )
    sign_conflict: float = Field(
        description="share of the places where both have opposite signs, estimated from it; unrelated ones have 0.5"
    )


class MergeForecast(Strict):
    """``POST /merges/forecast``: what the chosen merge would be like, without sampling and without a job. None where
    the merge has no such thing, or nothing was kept that tells.
    """

    merge: str = Field(description="the merge that this is about")
    verdict: Verdict | None = Field(description="null where the merge cannot be foreseen; `sentence` says so")
    sentence: str
    pairs: list[PairForecast]
    condition: float | None = None
    rank: int | None = None
    constraint_rows: int | None = None
    drift: float | None = Field(default=None, description="predicted, of the worst site")
    drift_alone: list[float] = Field(
        default_factory=list, description="the same for each of the weights alone, in their order"
    )
    cancelled: float | None = Field(
        default=None,
        description="share of the squared size of all changes that they take from one another in a sum",
    )
    beyond_rank: float | None = Field(
        default=None,
        description="share of what the words learned that no change of the rank asked for can hold",
    )
    missed: float | None = Field(
        default=None,
        description="share of what the words learned that is missing or another's, of the worst site",
    )
    sites: list[SiteForecast] = Field(default_factory=list, description="the sites responsible, worst first")
    notes: list[str] = Field(default_factory=list)
