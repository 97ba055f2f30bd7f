"""After a training: at which scale are the weights themselves and still do what the prompt says?

What a training learns usually overshoots: at its full scale the surroundings suffer and the judges read the class less
surely, while at a smaller one the subject is as much itself. Where that is differs between concepts. So a few pictures
are drawn at several scales, with prompts and seeds that no evaluation of ours uses, and the scale with the highest
harmonic mean of subject and prompt similarity, with a margin, is kept: the criterion by which Perfusion chooses among
checkpoints (Tewel et al. 2023, arXiv 2305.01644; methods.md 10.2), for the price of some pictures and no further
training. The scale is the one of `worker.ml.conditioning`: it moves V* and multiplies changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, harmonic_mean

from backend.schemas.bases import JudgesDescription
from backend.schemas.calibration import Calibration, CalibrationPoint
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import InputInvalid
from worker.ml.evaluation.measures import (
    Plan,
    Sight,
    Sitting,
    Target,
    photo_pixels,
    prompt_measure,
    sight,
    subject_measure,
)
from worker.ml.evaluation.panel import Panel
from worker.ml.families.base import DiffusionModel
from worker.ml.readers import reader_of
from worker.ml.run import Run
from worker.ml.training.lessons import ConceptExamples

SCALES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Below some scale what was learned breaks off at once, at another one with every prompt, wording and seed. So a scale
is only kept where the next smaller one is nearly as good, and the smallest never: it is there to be fallen to."""
NEARLY = 0.85
"""The share of a scale's score that the next smaller one must have. It was set after a look at the ten subjects of
``benchmarks/results/subjects.json``: when no loss at all was allowed, prompts of three of them suffered for nothing."""
SUBJECT_PROMPTS = (
    "a photo of a {} at night",
    "a photo of {} in the forest",
    "a photo of a {} in the desert",
    "a photo of {} at sunset",
)
"""With an article and without one, as people write: where what was learned breaks off depends on it."""
STYLE_PROMPTS = (
    "a house in the style of {}",
    "a car in the style of {}",
    "a tree in the style of {}",
    "a dog in the style of {}",
)
IMAGE_SEEDS = (11, 12)
MOST_STEPS = 12


@dataclass(frozen=True)
class Pupil:
    """A concept of the weights, and what the judges see of its photos and of the base's pictures of its class."""

    target: Target
    sitting: Sitting
    photos: Sight
    base: Sight


def calibrated(
    model: DiffusionModel,
    panel: Panel,
    judges: JudgesDescription,
    weights: ConceptWeights,
    concepts: Sequence[ConceptExamples],
    *,
    run: Run,
) -> tuple[ConceptWeights, Calibration]:
    """The weights with the scale in their manifest, and how it was found. ``run.step("images", ...)`` as pictures are
    drawn. Raises `InputInvalid` where the judges cannot tell, what `Run.step` raises, `PromptTooLong`.
    """
    pupils = [pupil(model, panel, each, run) for each in concepts]
    look = Look(model, weights, pupils)
    seen = {scale: look.at(scale) for scale in SCALES}
    scores = {scale: score for scale, (_, score) in seen.items()}
    safe = [scale for smaller, scale in pairwise(SCALES) if scores[smaller] >= NEARLY * scores[scale]]
    found = Calibration(
        # Of equals the largest, which has most of what was learned, and that too where no scale is safe.
        scale=max(safe or SCALES[-1:], key=lambda scale: (scores[scale], scale)),
        points=[point for point, _ in seen.values()],
        prompts=list(pupils[0].sitting.plan.prompts),
        image_seeds=list(IMAGE_SEEDS),
        judges=judges,
    )
    manifest = weights.manifest.model_copy(update={"scale": found.scale})
    return ConceptWeights(manifest, weights.tensors), found


def parts_of(concepts: int, looks: int = len(SCALES)) -> int:
    """The drawings that ``looks`` take, by default those of `calibrated`: one a prompt and concept, and the
    base's.
    """
    return concepts * len(SUBJECT_PROMPTS) * (looks + 1)


class Look:
    """What the judges see while weights are in use."""

    def __init__(self, model: DiffusionModel, weights: ConceptWeights, pupils: Sequence[Pupil]) -> None:
        reader = reader_of(weights)
        self._edit, self._installation = reader.edit(model, weights), reader.installation(model, weights)
        self._pupils = pupils

    def at(self, scale: float) -> tuple[CalibrationPoint, float]:
        """Means over the concepts, and the mean of the harmonic means of both similarities, each kept within 0..1.
        Raises `InputInvalid` where the judges cannot tell, what `Run.step` raises, `PromptTooLong`.
        """
        put = ((self._installation, scale),) if self._installation is not None else ()
        subjects, prompts, scores = [], [], []
        for each in self._pupils:
            own = each.sitting.own(each.target, self._edit, put, scale=scale)
            subject = subject_measure(each.sitting, each.target, each.base, own, photos=each.photos).value
            prompt = prompt_measure(each.sitting, each.target, each.base, own).value
            if subject is None or prompt is None:
                raise InputInvalid("The judges see no difference between the concept and its class.")
            subjects.append(subject)
            prompts.append(prompt)
            scores.append(harmonic_mean([min(max(value, 0.0), 1.0) for value in (subject, prompt)]))
        point = CalibrationPoint(
            scale=scale, subject_similarity=fmean(subjects), prompt_similarity=fmean(prompts)
        )
        return point, fmean(scores)


def pupil(model: DiffusionModel, panel: Panel, concept: ConceptExamples, run: Run) -> Pupil:
    """Draws what the base model makes of the class. Raises `InputInvalid` where the judges cannot tell, what
    `Run.step` raises, `PromptTooLong`.
    """
    target = Target(concept.token, concept.class_noun, concept.kind)
    prompts = STYLE_PROMPTS if concept.kind == "style" else SUBJECT_PROMPTS
    steps = min(MOST_STEPS, model.description.defaults.num_inference_steps)
    sitting = Sitting(model, panel, Plan(prompts, IMAGE_SEEDS, steps), run)
    try:
        panel.text_features([target.plain(prompt) for prompt in prompts])
    except ValueError:
        raise InputInvalid("The name of the class is longer than the judge can read.") from None
    photos = sight(panel, photo_pixels(concept.photos, model.description.resolution))
    if len(photos.subject) < 2:
        raise InputInvalid("There is a single photo, and nothing to compare with.")
    return Pupil(target, sitting, photos, sitting.plain(target))
