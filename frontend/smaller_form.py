"""The form that makes a version smaller, and what a version that was made smaller says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from backend.errors import Invalid
from backend.models import ConceptWeights
from backend.schemas.compressions import CompressionReport, Similarity
from backend.schemas.weights import Compression
from backend.services import comparisons, compressions
from backend.storage import Storage
from frontend.asking import text
from frontend.schema_shapes import plain

SHARES = {"fifth": (5, "A fifth"), "twentieth": (20, "A twentieth")}
"""Sizes as cards: by how much the file is divided, and in words."""
WORD = "word"
CRITERIA = {
    "nuclear": ("% of each layer's singular values, by their sum", 0.01),
    "energy": ("% of each layer's energy, their squares", 0.01),
    "rank": ("as the rank of every layer", 1),
    "max_bytes": ("kB for the file", 1000),
}
"""Ways to say it exactly: words behind the number, and what the number is multiplied by."""
MOST_SITES = 40
COMPARE = "compare"
_ANY = Compression(criterion="bytes", value=1, precision="float16")


@dataclass(frozen=True)
class SizeCard:
    name: str
    title: str
    bytes: int
    explanation: str


@dataclass(frozen=True)
class SmallerForm:
    """What can be chosen for a version."""

    sizes: list[SizeCard]
    largest_rank: int
    comparable: bool
    """Whether judges could compare pictures from before and after."""


@dataclass(frozen=True)
class Point:
    """A place of the curve in its picture, and what it stands for."""

    x: float
    y: float
    bytes: int
    kept: float


@dataclass(frozen=True)
class SimilarityView:
    """What the judges saw before and after: a sentence, a row for each with size and both similarities, and what the
    numbers rest on.
    """

    sentence: str
    rows: list[tuple[str, int, str, str]]
    basis: str


@dataclass(frozen=True)
class CutView:
    """What was kept of a version that was made smaller. ``error`` and ``one_rank`` are relative errors, 0..1."""

    report: CompressionReport
    said: str
    points: list[Point]
    similarity: SimilarityView | None


def form_of(session: Session, storage: Storage, row: ConceptWeights) -> SmallerForm | None:
    """None where nothing of the version can be made smaller."""
    found = compressions.held(storage, row, _ANY)
    if found is None:
        return None
    sizes = [
        SizeCard(name, title, row.size_bytes // divisor, "the layers that gain most keep most")
        for name, (divisor, title) in SHARES.items()
        if row.size_bytes // divisor > found.least_bytes
    ]
    return SmallerForm(
        [*sizes, SizeCard(WORD, "The word alone", found.least_bytes, "no layer of the model is changed")],
        found.largest_rank,
        comparisons.judges(session, row, comparisons.concepts(session, row)) is not None,
    )


def wanted(row: ConceptWeights, form: FormData) -> dict[str, Any]:
    """The request that the form means. Invalid for a number that is none."""
    body: dict[str, Any] = {"weights": row.id, "precision": text(form, "precision") or "float16"}
    if ticked := text(form, COMPARE):
        body["compare"] = ticked == "true"
    if (criterion := text(form, "criterion")) in CRITERIA:
        return body | {criterion: _amount(criterion, text(form, "amount"))}
    size = text(form, "size")
    if size in SHARES:
        return body | {"max_bytes": row.size_bytes // SHARES[size][0]}
    return body | {"token_only": True} if size == WORD else body


def _amount(criterion: str, said: str) -> float | int:
    try:
        number = float(said.replace(",", "."))
    except ValueError:
        number = nan
    if not isfinite(number):
        raise Invalid.at(f"/{criterion}", "Give a number.")
    factor = CRITERIA[criterion][1]
    if factor < 1:
        if not 0 < number <= 100:
            raise Invalid.at(f"/{criterion}", "Give more than 0 and at most 100.")
        return round(number * factor, 6)
    if criterion == "rank" and number != int(number):
        raise Invalid.at(f"/{criterion}", "Give a whole number.")
    return round(number * factor)


def cut_of(row: ConceptWeights) -> CutView | None:
    """None for a version that was not made smaller here."""
    told = row.report.get("compression")
    if told is None:
        return None
    report = CompressionReport.model_validate(told)
    seen = _similarity(report, report.similarity, len(row.manifest["tokens"])) if report.similarity else None
    return CutView(report, _said(report), _points(report), seen)


def _similarity(report: CompressionReport, found: Similarity, concepts: int) -> SimilarityView:
    before, after = found.before, found.after
    sizes = {"Before": (before, report.bytes_before), "After": (after, report.bytes_after)}
    return SimilarityView(
        sentence=f"Drawn at scale {plain(after.scale)}, subject similarity went from "
        f"{before.subject_similarity:.2f} to {after.subject_similarity:.2f} and prompt similarity from "
        f"{before.prompt_similarity:.2f} to {after.prompt_similarity:.2f}.",
        rows=[
            (name, size, f"{each.subject_similarity:.2f}", f"{each.prompt_similarity:.2f}")
            for name, (each, size) in sizes.items()
        ],
        basis=f"The same {len(found.image_seeds)} pictures of each of {len(found.prompts)} prompts"
        f"{', means over the concepts' if concepts > 1 else ''}; judged by {found.judges.name}. "
        f"{'Before: as its calibration saw it. ' if found.known_before else ''}"
        "So few pictures say nothing of differences of a few hundredths.",
    )


def _said(report: CompressionReport) -> str:
    value = report.value
    return {
        "rank": f"rank {value:.0f} in every layer",
        "nuclear": f"{100 * value:.4g} % of each layer's singular values",
        "energy": f"{100 * value:.4g} % of each layer's energy",
        "bytes": "shared out among the layers by what each byte keeps",
        "token-only": "the word alone",
    }[report.criterion]


def _points(report: CompressionReport) -> list[Point]:
    """The curve in a picture of 520 x 120: bytes to the right, by their square root, and what is kept upwards."""
    widest = max((point.bytes for point in report.curve), default=1)
    return [
        Point(
            round(520 * (point.bytes / widest) ** 0.5, 1),
            round(120 * min(1.0, point.relative_error), 1),
            point.bytes,
            1 - min(1.0, point.relative_error),
        )
        for point in report.curve
    ]
