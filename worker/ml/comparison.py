"""What making weights smaller did to their pictures (methods.md 7): the same prompts and seeds are drawn with the
weights before and after, at the scale that is their own, and the judges look at both.

Prompts, seeds and judging are those of calibration (`worker.ml.calibration`), so that what it saw at that scale is what
would be drawn again: it is taken where judges, prompts and seeds are the same, and the pictures from before are spared.
Whether photos are still the same is for who pins the job to know.
"""

from __future__ import annotations

from collections.abc import Sequence

from backend.schemas.bases import JudgesDescription
from backend.schemas.calibration import Calibration, CalibrationPoint
from backend.schemas.compressions import Similarity
from worker.ml.calibration import IMAGE_SEEDS, Look, pupil
from worker.ml.concept_weights import CODE_VERSION, ConceptWeights
from worker.ml.evaluation.panel import Panel
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.training.lessons import ConceptExamples

LOOKS = 2


def compared(
    model: DiffusionModel,
    panel: Panel,
    judges: JudgesDescription,
    *,
    before: ConceptWeights,
    after: ConceptWeights,
    concepts: Sequence[ConceptExamples],
    known: Calibration | None,
    run: Run,
) -> Similarity:
    """Subject and prompt similarity of both. ``known``: the calibration of ``before`` with the same photos.
    ``run.step("images", ...)`` as pictures are drawn. Raises `InputInvalid` where the judges cannot tell, what
    `Run.step` raises, `PromptTooLong`.
    """
    pupils = [pupil(model, panel, each, run) for each in concepts]
    scale, prompts = before.manifest.scale, list(pupils[0].sitting.plan.prompts)
    point = None
    if before.manifest.code_version == CODE_VERSION:
        point = _known(known, judges, prompts, scale)
    return Similarity(
        before=point or Look(model, before, pupils).at(scale)[0],
        after=Look(model, after, pupils).at(scale)[0],
        known_before=point is not None,
        prompts=prompts,
        image_seeds=list(IMAGE_SEEDS),
        judges=judges,
    )


def _known(
    known: Calibration | None, judges: JudgesDescription, prompts: list[str], scale: float
) -> CalibrationPoint | None:
    """What was seen at ``scale``, where it is what would be seen now."""
    if known is None or (known.judges.hash, known.prompts, known.image_seeds) != (
        judges.hash,
        prompts,
        list(IMAGE_SEEDS),
    ):
        return None
    return next((point for point in known.points if point.scale == scale), None)
