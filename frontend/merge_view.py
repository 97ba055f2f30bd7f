"""Merges in words: the forecast before one, and its verification report after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from backend.errors import NotFound
from backend.schemas.concepts import Concept
from backend.schemas.merges.requests import MergeForecast, MergeReport, PairForecast, SiteMerge
from backend.services import concepts, weights
from frontend import phrases

MOST_SITES = 40
ROUNDING = 1e-9
MEANINGS = {
    "Words alike": "Cosine between the text states of the two words. 1: they read as one word; 0: nothing in common.",
    "Shared directions": "How much of the text that the first one changes is changed by the second as well.",
    "Crosstalk": "How far each would move the other's word if both were simply added, against what that word learned. "
    "A merge takes this away, at the price of drift.",
    "Same direction": "Cosine of what both change, as their words read it. 1: the same; 0: unrelated; -1: opposite, "
    "and in a sum they take from one another.",
    "Opposite signs": "In so many places, where both have a number, one is above zero and the other below, as far as "
    "can be told ahead; unrelated changes have 50 %.",
    "Cancelled": "Share of the changes, of their squared size, that they take from one another in a sum.",
    "Beyond the rank": "Share of what the words learned, of its squared size, that no change of this rank can hold.",
    "Drift ahead": "How far other text will move in the layer that moves most. Less is better.",
    "Missing ahead": "Share of what the words learned that is missing or another's, in the worst layer.",
    "Pinned": "Independent directions that the concepts' words pin down, of those that were counted.",
    "Words off by": "How far keys and values of the concepts' words are from what each learned, in the worst layer. "
    "0: exactly what was learned.",
    "Drift": "How far keys and values of ordinary captions moved, in the worst layer. It is the price of a merge; "
    "less is better.",
    "Drift on new captions": "The same on captions that the merge has never seen.",
    "Contradiction": "Share of what the concepts want that contradicts one another. No merge can do both.",
    "Cut off": "Share of the sum of the changes, of its squared size, that the result leaves out.",
    "Off by, of their change": "How far the words are off, against how much they changed at all.",
    "Drift predicted": "What the algebra says the drift is; it should equal what was measured.",
    "From the optimum": "0: no other change with the same words would move other text less.",
    "Words kept": "Independent directions among the words that had to be kept.",
    "Condition": "The strongest over the weakest of these directions. Large: two words are hard to tell apart.",
    "Captions held": "Sentences whose keys and values were to stay.",
    "Took": "The merge itself, without loading.",
}
BARRED = {
    "drift": "How far other text will move in each layer",
    "crosstalk": "Crosstalk in each layer",
    "sign_conflict": "Opposite signs in each layer, estimated; 50 % by chance",
}
VERDICTS = {"good": "Go well together", "fair": "Go together", "poor": "Get in each other's way"}


@dataclass(frozen=True)
class Number:
    """A number with its unit."""

    name: str
    value: str

    @property
    def meaning(self) -> str:
        """A sentence that says what it means."""
        return MEANINGS[self.name]


@dataclass(frozen=True)
class Bar:
    """One layer of a picture of bars: a share of the longest one, 0..1."""

    name: str
    full: str
    share: float
    value: str


@dataclass(frozen=True)
class PairView:
    """Two of the weights, as the concepts they teach."""

    first: list[Concept]
    second: list[Concept]
    verdict: str
    words: str
    sentence: str
    numbers: list[Number]


@dataclass(frozen=True)
class ForecastView:
    """``verdict`` and ``words`` are empty where the chosen merge cannot be foreseen; ``barred``: what the bars show."""

    verdict: str
    words: str
    sentence: str
    pairs: list[PairView]
    numbers: list[Number]
    bars: list[Bar]
    barred: str
    notes: list[str]


@dataclass(frozen=True)
class ReportView:
    """What a merge did. ``renamed``: sentences about words that are called otherwise in the result."""

    report: MergeReport
    sentence: str
    numbers: list[Number]
    more: list[Number]
    sites: list[SiteMerge] = field(default_factory=list)


def of_forecast(session: Session, owner: str, told: MergeForecast) -> ForecastView:
    """The forecast with the concepts that it is about."""
    ids = {each.first for each in told.pairs} | {each.second for each in told.pairs}
    taught = {each: taught_by(session, owner, each) for each in ids}
    drifts = told.drift is not None
    votes = any(site.sign_conflict is not None for site in told.sites)
    shown = "drift" if drifts else "sign_conflict" if votes else "crosstalk"
    shares = [(site.site, getattr(site, shown) or 0.0) for site in told.sites]
    longest = max((share for _, share in shares), default=0.0) or 1.0
    return ForecastView(
        verdict=told.verdict or "",
        words=VERDICTS[told.verdict] if told.verdict else "",
        sentence=told.sentence,
        pairs=[_pair(each, taught) for each in told.pairs],
        numbers=_forecast_numbers(told),
        bars=[Bar(phrases.layer(site), site, share / longest, phrases.fine(share)) for site, share in shares],
        barred=BARRED[shown],
        notes=told.notes,
    )


def taught_by(session: Session, owner: str, weights_id: str) -> list[Concept]:
    """The concepts that weights teach; of deleted weights none."""
    try:
        shown = weights.to_schema(session, weights.get(session, owner, weights_id))
    except NotFound:
        return []
    return concepts.to_schemas(session, [concepts.get(session, owner, each) for each in shown.concepts])


def _pair(told: PairForecast, taught: Mapping[str, list[Concept]]) -> PairView:
    return PairView(
        first=taught[told.first],
        second=taught[told.second],
        verdict=told.verdict,
        words=VERDICTS[told.verdict],
        sentence=told.sentence,
        numbers=[
            Number("Words alike", f"{told.token_cosine:.2f}"),
            Number("Shared directions", phrases.percent(told.overlap)),
            Number("Crosstalk", phrases.percent(told.crosstalk)),
            Number("Same direction", f"{told.agreement:.2f}"),
            Number("Opposite signs", phrases.percent(told.sign_conflict)),
        ],
    )


def _forecast_numbers(told: MergeForecast) -> list[Number]:
    found = []
    if told.drift is not None:
        alone = f" (alone {', '.join(map(phrases.fine, told.drift_alone))})" if told.drift_alone else ""
        found.append(Number("Drift ahead", f"{phrases.fine(told.drift)}{alone}"))
    if told.missed is not None:
        found.append(Number("Missing ahead", phrases.fine(told.missed)))
    if told.rank is not None and told.constraint_rows is not None:
        found.append(Number("Pinned", f"{told.rank} of {told.constraint_rows}"))
    if told.condition is not None:
        found.append(Number("Condition", f"{told.condition:.3g}"))
    if told.cancelled is not None:
        found.append(Number("Cancelled", phrases.percent(told.cancelled)))
    if told.beyond_rank is not None:
        found.append(Number("Beyond the rank", phrases.percent(told.beyond_rank)))
    return found


def of_report(report: MergeReport, names: Sequence[str]) -> ReportView:
    """The report in words. ``names``: of the concepts that were merged."""
    sentence = _sentence(report, " and ".join(names))
    return ReportView(report, sentence, _numbers(report), _further(report), report.sites[:MOST_SITES])


def _sentence(report: MergeReport, names: str) -> str:
    if not report.verified:
        return "The merge did not pass its verification, so nothing of it is used."
    named = names or "The concepts"
    if report.residual is None and report.residual_of_change is not None:
        missing = phrases.fine(report.residual_of_change)
        return f"{named} are one set of weights now; of what they learned, {missing} is missing in the worst layer."
    if report.residual is None:
        return f"{named} are one set of weights now; whether each is still itself, only pictures can say."
    kept = f"{named} keep what they learned to within {phrases.fine(report.residual)}"
    if report.drift is None:
        return f"{kept}."
    return f"{kept}; other text moves by {phrases.fine(report.drift)} in the layer that moves most."


def _numbers(report: MergeReport) -> list[Number]:
    told = {
        "Words off by": report.residual,
        "Drift": report.drift,
        "Drift on new captions": report.drift_held_out,
        "Contradiction": _above_rounding(report.inconsistency),
        "Cut off": _above_rounding(report.discarded_energy),
    }
    return [Number(name, phrases.fine(value)) for name, value in told.items() if value is not None]


def _above_rounding(share: float | None) -> float | None:
    """0 for what is double precision's rounding alone."""
    return 0.0 if share is not None and share < ROUNDING else share


def _further(report: MergeReport) -> list[Number]:
    told = {
        "Off by, of their change": report.residual_of_change,
        "Drift predicted": report.drift_predicted,
        "From the optimum": report.stationarity,
    }
    found = [Number(name, phrases.fine(value)) for name, value in told.items() if value is not None]
    if report.rank is not None and report.constraint_rows is not None:
        found.append(Number("Words kept", f"{report.rank} of {report.constraint_rows}"))
    if report.condition is not None:
        found.append(Number("Condition", f"{report.condition:.3g}"))
    if report.captions is not None:
        found.append(Number("Captions held", str(report.captions)))
    if report.seconds is not None:
        found.append(Number("Took", f"{report.seconds:.2f} s"))
    return found
