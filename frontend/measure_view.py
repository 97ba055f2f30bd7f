"""What judges said of weights, in words and on a scale from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from backend.errors import NotFound
from backend.schemas.evaluations import ConceptReport, EvaluationReport, Measure
from backend.services import evaluations, jobs, weights

LEFT, RIGHT = -0.25, 1.25
"""Ends of the drawn scale; what lies beyond is drawn at its end, and the number says how far."""
SENTENCES = (
    (
        "subject_similarity",
        "Subject similarity",
        "0: the base model's pictures of the class. 1: the photos among themselves.",
    ),
    (
        "prompt_similarity",
        "Prompt similarity",
        "0: the base model's pictures against an unrelated prompt. 1: against their own prompt.",
    ),
    (
        "drift",
        "Drift",
        "How other pictures of the class have changed. 0: not at all. 1: as far off as the photos are. "
        "Less is better.",
    ),
)


@dataclass(frozen=True)
class MeasureView:
    """One measure. ``at``, ``low`` and ``high`` are shares of the drawn scale's width, 0..1; None where the judges
    could not tell.
    """

    name: str
    value: str
    spread: str
    meaning: str
    at: float | None
    low: float
    high: float


@dataclass(frozen=True)
class EvaluationView:
    """The newest evaluation of weights for one concept."""

    measures: list[MeasureView]
    basis: str
    job: str | None


def newest(session: Session, owner: str, weights_id: str, concept_id: str) -> EvaluationView | None:
    """What was said last of the weights about the concept."""
    rows, _ = evaluations.page(session, owner, limit=1, weights=weights_id)
    if not rows:
        return None
    shown = evaluations.to_schema(session, rows[0])
    found = [
        each for each in shown.report.concepts if each.weights == weights_id and each.concept == concept_id
    ]
    return EvaluationView(_measures(found[0]), basis(shown.report), shown.job) if found else None


def under_way(session: Session, owner: str) -> dict[str, str]:
    """The live evaluation of each weights that has one: weights id -> job id."""
    found: dict[str, str] = {}
    for state in ("queued", "running"):
        rows, _ = jobs.page(session, owner, state=state, kind="evaluate", limit=50)
        for row in rows:
            found |= dict.fromkeys(row.request.get("weights", []), row.id)
    return found


def of_report(report: EvaluationReport, names: dict[str, str]) -> list[tuple[str, list[MeasureView]]]:
    """The measures of every concept of a report, each under its name where it still has one."""
    return [(names.get(each.concept, "a concept"), _measures(each)) for each in report.concepts]


def concepts_of(session: Session, owner: str, weights_ids: list[str]) -> list[str]:
    """Ids of the concepts that weights teach; of deleted weights none."""
    found: list[str] = []
    for weights_id in weights_ids:
        try:
            found += weights.to_schema(session, weights.get(session, owner, weights_id)).concepts
        except NotFound:
            continue
    return list(dict.fromkeys(found))


def basis(report: EvaluationReport) -> str:
    """What the numbers rest on."""
    return (
        f"{report.num_images} pictures of each of {len(report.prompts)} prompts; judged by {report.judges.name}; "
        "the line is the 95 % interval over seeds."
    )


def _measures(report: ConceptReport) -> list[MeasureView]:
    return [_measure(name, meaning, getattr(report, field)) for field, name, meaning in SENTENCES]


def _measure(name: str, meaning: str, measure: Measure) -> MeasureView:
    if measure.value is None or measure.half_width_95 is None:
        told = f"{meaning} The judges see no difference between the two, so they cannot tell."
        return MeasureView(name, "–", "", told, None, 0.0, 0.0)
    low, high = measure.value - measure.half_width_95, measure.value + measure.half_width_95
    return MeasureView(
        name, f"{measure.value:.2f}", f"± {measure.half_width_95:.2f}", meaning, share(measure.value), share(low),
        share(high),
    )  # fmt: skip


def share(value: float) -> float:
    """Where a value stands on the drawn scale, 0..1."""
    return min(1.0, max(0.0, (value - LEFT) / (RIGHT - LEFT)))
