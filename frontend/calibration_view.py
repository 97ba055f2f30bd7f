"""How calibration found the scale of weights: a sentence, and a plot of every scale that was tried."""

from __future__ import annotations

from dataclasses import dataclass

from backend.models import ConceptWeights
from backend.schemas.calibration import Calibration, CalibrationPoint
from backend.services import mixing
from frontend import measure_view
from frontend.schema_shapes import plain

WIDTH, HEIGHT = 304.0, 120.0
"""Of the plot: scales to the right, measures upwards from ``measure_view.LEFT`` to ``RIGHT``."""


@dataclass(frozen=True)
class Tried:
    """A scale that was tried: its place in the plot, and in words."""

    x: float
    subject_y: float
    prompt_y: float
    words: str
    chosen: bool


@dataclass(frozen=True)
class CalibrationView:
    """``tried`` is empty where the scale came with the file or from other weights, and nobody here tried others."""

    sentence: str
    tried: list[Tried]
    ends: tuple[str, str]
    label: str
    basis: str

    @property
    def grounds(self) -> list[tuple[int, float]]:
        """The lines of 0 and 1: number and place."""
        return [(value, _y(value)) for value in (0, 1)]


def of_weights(row: ConceptWeights) -> CalibrationView | None:
    """None where the weights are drawn as they were learned because nobody looked for anything else."""
    told = row.report.get("calibration")
    if told is not None:
        return _view(Calibration.model_validate(told), len(row.manifest["tokens"]))
    scale = mixing.own_scale(row)
    return None if scale == 1 else CalibrationView(f"Drawn at scale {plain(scale)}", [], ("", ""), "", "")


def _view(found: Calibration, concepts: int) -> CalibrationView:
    chosen = next(point for point in found.points if point.scale == found.scale)
    low, high = found.points[0].scale, found.points[-1].scale
    said = [_words(point) for point in found.points]
    tried = [
        Tried(
            round(WIDTH * (point.scale - low) / ((high - low) or 1), 1),
            _y(point.subject_similarity),
            _y(point.prompt_similarity),
            words,
            point is chosen,
        )
        for point, words in zip(found.points, said, strict=True)
    ]
    return CalibrationView(
        sentence=f"Drawn at {_words(chosen)}",
        tried=tried,
        ends=(plain(low), plain(high)),
        label=f"Every scale that was tried. {'; '.join(said).capitalize()}. Kept: scale {plain(found.scale)}",
        basis=f"Scale {plain(found.scale)} does best by both together, of those below which nothing breaks off; "
        "a prompt with nobody else gets it. "
        f"{len(found.image_seeds)} pictures of each of {len(found.prompts)} prompts at every scale"
        f"{', means over the concepts' if concepts > 1 else ''}; judged by {found.judges.name}.",
    )


def _words(point: CalibrationPoint) -> str:
    return (
        f"scale {plain(point.scale)}: subject similarity {point.subject_similarity:.2f}, "
        f"prompt similarity {point.prompt_similarity:.2f}"
    )


def _y(value: float) -> float:
    """From the top of the plot; what lies beyond its ends is drawn at them."""
    return round(HEIGHT * (1 - measure_view.share(value)), 1)
