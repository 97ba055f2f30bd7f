"""Calibration: at which scale freshly trained weights are themselves and still do what the prompt says."""

from __future__ import annotations

from pydantic import Field

from backend.schemas.bases import JudgesDescription
from backend.schemas.strict import Strict


class CalibrationPoint(Strict):
    """What the judges saw at one scale; means over the concepts, on the scales of an evaluation."""

    scale: float
    subject_similarity: float
    prompt_similarity: float


class Calibration(Strict):
    """``report.calibration`` of trained weights; ``scale`` is in their manifest as well."""

    scale: float = Field(description="where the harmonic mean of both similarities is highest")
    points: list[CalibrationPoint] = Field(description="every scale that was tried, ascending")
    prompts: list[str]
    image_seeds: list[int]
    judges: JudgesDescription
