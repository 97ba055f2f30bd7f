"""Pictures from before and after weights are made smaller: the same prompts and seeds at one scale, and nothing drawn
twice.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.schemas.calibration import Calibration, CalibrationPoint
from backend.schemas.compressions import Similarity
from backend.schemas.weights import Compression
from tests.ml.teaching import everything, random_edit, same, stark, teach
from tests.ml.test_calibration import JUDGES, panel
from worker.ml.calibration import IMAGE_SEEDS, SUBJECT_PROMPTS, Look, parts_of, pupil
from worker.ml.comparison import LOOKS, compared
from worker.ml.compression import compress
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import DenseChange
from worker.ml.errors import InputInvalid
from worker.ml.evaluation.panel import Panel
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun

__all__ = ["panel"]


class Counting(InProcessRun):
    """Counts the drawings that came to their end."""

    over = 0

    def step(self, unit: str, done: int, total: int, **metrics: float) -> None:
        self.over += unit == "images" and done == total


@pytest.fixture
def before(model: DiffusionModel, photos: list[Path], tmp_path: Path) -> ConceptWeights:
    """Changed so much that every cut looks different; calibrated to 0.7."""
    weights = teach(model, [stark(photos)], tmp_path)
    tensors = dict(weights.tensors)
    for name, change in random_edit(model).sites.items():
        assert isinstance(change, DenseChange)
        tensors[f"site.{name}.delta"] = change.matrix
    return replace(weights, tensors=tensors, manifest=weights.manifest.model_copy(update={"scale": 0.7}))


def cut(model: DiffusionModel, weights: ConceptWeights, rank: int) -> ConceptWeights:
    wanted = Compression(criterion="rank", value=rank, precision="int8")
    return compress(model, weights, wanted, "parent", InProcessRun()).weights


def test_the_scale_that_was_found_carries_over(model: DiffusionModel, before: ConceptWeights) -> None:
    assert cut(model, before, 2).manifest.scale == 0.7


def test_both_are_drawn_at_their_scale_and_judged_as_calibration_judges(
    model: DiffusionModel, panel: Panel, before: ConceptWeights, photos: list[Path]
) -> None:
    untouched, run = everything(model), Counting()
    after, concept = cut(model, before, 2), stark(photos)
    found = compared(
        model, panel, JUDGES, before=before, after=after, concepts=[concept], known=None, run=run
    )
    seen = [pupil(model, panel, concept, InProcessRun())]
    assert found == Similarity(
        before=Look(model, before, seen).at(0.7)[0],
        after=Look(model, after, seen).at(0.7)[0],
        known_before=False,
        prompts=list(SUBJECT_PROMPTS),
        image_seeds=list(IMAGE_SEEDS),
        judges=JUDGES,
    )
    assert found.before.subject_similarity != found.after.subject_similarity
    assert run.over == parts_of(1, LOOKS) == 3 * len(SUBJECT_PROMPTS)
    assert same(untouched, everything(model))


def test_what_calibration_saw_is_not_drawn_again(
    model: DiffusionModel, panel: Panel, before: ConceptWeights, photos: list[Path]
) -> None:
    point = CalibrationPoint(scale=0.7, subject_similarity=0.81, prompt_similarity=0.92)
    known = Calibration(
        scale=0.7, points=[point], prompts=list(SUBJECT_PROMPTS), image_seeds=list(IMAGE_SEEDS), judges=JUDGES
    )
    after = cut(model, before, 2)

    def drawn(known: Calibration, weights: ConceptWeights = before) -> tuple[Similarity, int]:
        run = Counting()
        found = compared(
            model, panel, JUDGES, before=weights, after=after, concepts=[stark(photos)], known=known, run=run
        )
        return found, run.over

    found, over = drawn(known)
    assert (found.before, found.known_before, over) == (point, True, 2 * len(SUBJECT_PROMPTS))
    older = before.manifest.model_copy(update={"code_version": "0.0.1"})
    others: list[tuple[Calibration, ConceptWeights]] = [
        (known.model_copy(update={"prompts": ["a photo of a {}"]}), before),
        (known.model_copy(update={"image_seeds": [1, 2]}), before),
        (known.model_copy(update={"judges": JUDGES.model_copy(update={"hash": "1" * 64})}), before),
        (known.model_copy(update={"points": [point.model_copy(update={"scale": 0.8})]}), before),
        (known, replace(before, manifest=older)),
    ]
    for other, weights in others:
        found, over = drawn(other, weights)
        assert (found.before == point, found.known_before, over) == (False, False, 3 * len(SUBJECT_PROMPTS))


def test_weights_that_are_installed_are_compared_too(
    model: DiffusionModel, panel: Panel, photos: list[Path], tmp_path: Path
) -> None:
    weights = teach(model, [stark(photos)], tmp_path, method="lokr", learning_rate=0.05)
    assert weights.manifest.side == "weights"
    wanted = Compression(criterion="token-only", value=0, precision="float16")
    words = compress(model, weights, wanted, "parent", InProcessRun()).weights
    found = compared(
        model, panel, JUDGES, before=weights, after=words, concepts=[stark(photos)], known=None,
        run=InProcessRun(),
    )  # fmt: skip
    assert found.before.subject_similarity != found.after.subject_similarity
    assert torch.isfinite(torch.tensor([found.after.subject_similarity, found.after.prompt_similarity])).all()


def test_what_cannot_be_judged_is_said(
    model: DiffusionModel, panel: Panel, before: ConceptWeights, photos: list[Path]
) -> None:
    alone = replace(stark(photos), photos=photos[:1])
    with pytest.raises(InputInvalid, match="single photo"):
        compared(
            model, panel, JUDGES, before=before, after=before, concepts=[alone], known=None,
            run=InProcessRun(),
        )  # fmt: skip
