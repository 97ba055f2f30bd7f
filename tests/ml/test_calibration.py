"""Calibration: the best of the scales that were tried, drawn at that scale, with nothing learned lost."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import harmonic_mean

import numpy as np
import pytest
import torch
from PIL import Image

from backend.schemas.bases import JudgesDescription
from backend.schemas.calibration import Calibration
from tests.ml.evaluation.tiny_judges import write_clip, write_dinov2
from tests.ml.teaching import everything, random_edit, same, stark, teach
from worker.ml.calibration import IMAGE_SEEDS, NEARLY, SCALES, SUBJECT_PROMPTS, calibrated, parts_of
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import DenseChange
from worker.ml.errors import InputInvalid
from worker.ml.evaluation.measures import (
    Plan,
    Sitting,
    Target,
    draw,
    photo_pixels,
    prompt_measure,
    sight,
    subject_measure,
)
from worker.ml.evaluation.panel import Panel, load_panel
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS
from worker.ml.run import FinishRequested, InProcessRun
from worker.ml.training.lessons import ConceptExamples

JUDGES = JudgesDescription(name="tiny judges", hash="0" * 64)
TARGET = Target("stark", "dog")


@pytest.fixture(scope="module")
def panel(model: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> Panel:
    """The first of random judges that do tell prompts apart."""
    root = tmp_path_factory.mktemp("judges")
    dino = write_dinov2(root / "dino")
    for seed in range(30):
        found = load_panel(Path("unused"), [write_clip(root / f"clip-{seed}", seed=seed), dino])
        sitting = Sitting(model, found, Plan(SUBJECT_PROMPTS, IMAGE_SEEDS, 12), InProcessRun())
        base = sitting.plain(TARGET)
        if prompt_measure(sitting, TARGET, base, base).value is not None:
            return found
    raise AssertionError("random judges see nothing")


@pytest.fixture
def weights(model: DiffusionModel, photos: list[Path], tmp_path: Path) -> ConceptWeights:
    """Trained for a moment, then changed so much that every scale looks different."""
    weights, edit = teach(model, [stark(photos)], tmp_path), random_edit(model)
    tensors = dict(weights.tensors)
    for name, change in edit.sites.items():
        assert isinstance(change, DenseChange)
        tensors[f"site.{name}.delta"] = change.matrix
    return replace(weights, tensors=tensors)


def clamped_mean(*values: float) -> float:
    return harmonic_mean([min(max(value, 0.0), 1.0) for value in values])


def calibrate(
    model: DiffusionModel, panel: Panel, weights: ConceptWeights, photos: list[Path]
) -> tuple[ConceptWeights, Calibration]:
    return calibrated(model, panel, JUDGES, weights, [stark(photos)], run=InProcessRun())


@pytest.fixture
def pictures(model: DiffusionModel, weights: ConceptWeights, tmp_path: Path) -> list[Path]:
    """One picture that the weights themselves draw at seven tenths, as two photos: so there is something to be like."""
    edit, plan = METHODS["custom-diffusion"].edit(model, weights), Plan(SUBJECT_PROMPTS, IMAGE_SEEDS, 12)
    [drawn, _] = draw(model, plan, [TARGET.own(SUBJECT_PROMPTS[0])], InProcessRun(), edit=edit, scale=0.7)
    shown = ((drawn.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for file, change in zip(files, (0, 1), strict=True):
        Image.fromarray(shown ^ change).save(file)
    return files


def test_the_best_scale_below_which_nothing_breaks_off_is_kept(
    model: DiffusionModel, panel: Panel, weights: ConceptWeights, pictures: list[Path]
) -> None:
    photos, before = pictures, everything(model)
    found, told = calibrate(model, panel, weights, photos)
    assert [point.scale for point in told.points] == list(SCALES)
    scores = {p.scale: clamped_mean(p.subject_similarity, p.prompt_similarity) for p in told.points}
    safe = {scale: scores[scale] for low, scale in pairwise(SCALES) if scores[low] >= NEARLY * scores[scale]}
    assert len(set(safe.values())) > 1
    assert told.scale == max(safe, key=lambda scale: (safe[scale], scale))
    assert found.manifest == weights.manifest.model_copy(update={"scale": told.scale})
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in weights.tensors.items())
    assert (told.prompts, told.image_seeds, told.judges) == (list(SUBJECT_PROMPTS), list(IMAGE_SEEDS), JUDGES)
    assert same(before, everything(model))


def test_a_point_is_what_an_evaluation_measures_at_that_scale(
    model: DiffusionModel, panel: Panel, weights: ConceptWeights, photos: list[Path]
) -> None:
    point = next(each for each in calibrate(model, panel, weights, photos)[1].points if each.scale == 0.6)
    steps = min(12, model.description.defaults.num_inference_steps)
    sitting = Sitting(model, panel, Plan(SUBJECT_PROMPTS, IMAGE_SEEDS, steps), InProcessRun())
    base = sitting.base(TARGET)[0]
    edit = METHODS["custom-diffusion"].edit(model, weights)
    own, _ = sitting.taught(TARGET, edit, scale=0.6)
    seen = sight(panel, photo_pixels(photos, model.description.resolution))
    subject = subject_measure(sitting, TARGET, base, own, photos=seen)
    assert subject.value == pytest.approx(point.subject_similarity)
    assert prompt_measure(sitting, TARGET, base, own).value == pytest.approx(point.prompt_similarity)
    at_one, _ = sitting.taught(TARGET, edit)
    assert not np.array_equal(own.subject, at_one.subject)


def test_where_nothing_was_learned_every_scale_is_as_good_and_the_whole_one_stays(
    model: DiffusionModel, panel: Panel, weights: ConceptWeights, photos: list[Path]
) -> None:
    still = dict(weights.tensors)
    for name, tensor in weights.tensors.items():
        if name.startswith("site."):
            still[name] = torch.zeros_like(tensor)
        elif name.endswith(".learned"):
            still[name] = still[name.removesuffix("learned") + "start"]
    found, told = calibrate(model, panel, replace(weights, tensors=still), photos)
    assert found.manifest.scale == 1.0
    assert {round(point.subject_similarity, 6) for point in told.points} == {
        round(told.points[0].subject_similarity, 6)
    }


def test_weight_side_weights_are_drawn_at_the_scale_too(
    model: DiffusionModel, panel: Panel, photos: list[Path], tmp_path: Path
) -> None:
    weights = teach(model, [stark(photos)], tmp_path, method="lora", learning_rate=0.05)
    _, told = calibrate(model, panel, weights, photos)
    assert len({point.subject_similarity for point in told.points}) > 2


def test_every_drawing_is_counted_and_a_request_to_finish_ends_it(
    model: DiffusionModel, panel: Panel, weights: ConceptWeights, photos: list[Path]
) -> None:
    class Asked(InProcessRun):
        over = 0

        def step(self, unit: str, done: int, total: int, **metrics: float) -> None:
            self.over += done == total
            if self.over == 7:
                raise FinishRequested

    with pytest.raises(FinishRequested):
        calibrated(model, panel, JUDGES, weights, [stark(photos)], run=Asked())

    class Counting(Asked):
        def step(self, unit: str, done: int, total: int, **metrics: float) -> None:
            self.over += done == total

    run = Counting()
    calibrated(model, panel, JUDGES, weights, [stark(photos)], run=run)
    assert run.over == parts_of(1)


def test_what_cannot_be_judged_is_said(
    model: DiffusionModel, panel: Panel, weights: ConceptWeights, photos: list[Path]
) -> None:
    alone = replace(stark(photos), photos=photos[:1])
    wordy = ConceptExamples("stark", "very " * 80 + "dog", "subject", photos)
    for concept, words in ((alone, "single photo"), (wordy, "longer than the judge")):
        with pytest.raises(InputInvalid, match=words):
            calibrated(model, panel, JUDGES, weights, [concept], run=InProcessRun())
