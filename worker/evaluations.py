"""An evaluation job: pinned weights and photos in, a report out.

What the judges saw in each prompt's pictures is kept, so that an attempt that ends early costs the pictures of one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from backend.schemas.evaluations import ConceptReport, EvaluateSpec, EvaluationReport
from backend.schemas.generations import PinnedWeights
from backend.schemas.trainings import PinnedConcept
from worker.counted_run import CountedRun
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.errors import InputInvalid
from worker.ml.evaluation.measures import (
    SETS_OF_BASE,
    SETS_OF_CONCEPT,
    Plan,
    Sight,
    Sights,
    Sitting,
    Target,
    grade,
    photo_pixels,
    sight,
)
from worker.ml.evaluation.panel import Panel
from worker.ml.families import DiffusionModel
from worker.ml.installation import Installation
from worker.ml.readers import reader_of
from worker.ml.run import Run

FIRST_SEED = 101
"""Image seeds are the same in every evaluation, so that reports compare."""


@dataclass
class KeptSights:
    """A `Keep` in a folder: one safetensors file a part, written beside and renamed, so that a file that is there is
    whole. ``made`` hears how many parts there are after each.
    """

    folder: Path
    made: Callable[[int], None]
    parts: int = 0

    def count(self) -> int:
        """How many parts an earlier attempt left."""
        return len(list(self.folder.glob("*.safetensors")))

    def __call__(self, name: str, make: Callable[[], Sight]) -> Sight:
        self.folder.mkdir(parents=True, exist_ok=True)
        # A class noun may hold anything, a file name may not.
        file = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()}.safetensors"
        try:
            stored = load_file(file)
            found = Sight(stored["image_text"], stored["subject"])
        except (OSError, KeyError, SafetensorError):
            found = make()
            staged = file.with_suffix(".tmp")
            save_file({"image_text": found.image_text, "subject": found.subject}, staged)
            with staged.open("rb") as written:
                os.fsync(written.fileno())
            staged.replace(file)
            self.parts += 1
            self.made(self.parts)
            return found
        self.parts += 1
        return found


def evaluate(
    spec: EvaluateSpec,
    inputs: Mapping[str, str],
    model: DiffusionModel,
    panel: Panel,
    *,
    run: Run,
    kept: KeptSights,
) -> EvaluationReport:
    """Measure every concept of every weights of the spec. ``inputs`` maps storage keys to local files.

    Raises `InputInvalid`, `PromptTooLong`, `WeightsInvalid`, `MethodUnsupported`, and what ``run.step`` raises.
    """
    concepts = {concept.id: concept for concept in spec.concepts}
    pairs = [
        (weights, token, concepts[concept])
        for weights in spec.weights
        for token, concept in zip(weights.tokens, weights.concepts, strict=True)
    ]
    _require_readable(panel, spec, pairs)
    steps = model.description.defaults.num_inference_steps
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + spec.num_images))
    plans = {
        "subject": Plan(tuple(spec.prompts), seeds, steps),
        "style": Plan(tuple(spec.style_prompts), seeds, steps),
    }
    counted = CountedRun(run, _parts(pairs, plans), lambda: kept.parts)
    # What a judge sees of a class is looked up once however many concepts share it, and counted once.
    shared: dict[str, tuple[Sight, Sight]] = {}
    reports = []
    for place, (weights, token, concept) in enumerate(pairs):
        target = Target(token, concept.class_noun, concept.kind)
        sitting = Sitting(model, panel, plans[concept.kind], counted, kept)
        photos = _photos(sitting, inputs, concept)
        if _class_of(concept) not in shared:
            shared[_class_of(concept)] = sitting.base(target)
        edit, installed = _learned(model, Path(inputs[weights.file.storage_key]), weights.scale)
        taught = sitting.taught(target, edit, installed, name=str(place), scale=weights.scale)
        grades = grade(sitting, target, Sights(*shared[_class_of(concept)], *taught), photos)
        reports.append(
            ConceptReport(
                weights=weights.file.id,
                concept=concept.id,
                subject_similarity=grades.subject_similarity,
                prompt_similarity=grades.prompt_similarity,
                drift=grades.drift,
            )
        )
    return EvaluationReport(
        judges=spec.judges,
        prompts=[*spec.prompts, *spec.style_prompts],
        num_images=spec.num_images,
        num_inference_steps=steps,
        concepts=reports,
    )


def _require_readable(
    panel: Panel, spec: EvaluateSpec, pairs: Sequence[tuple[PinnedWeights, str, PinnedConcept]]
) -> None:
    """Before anything is drawn: the judge may read fewer tokens than the base's text encoder."""
    for _, token, concept in pairs:
        target = Target(token, concept.class_noun, concept.kind)
        asked = spec.style_prompts if concept.kind == "style" else spec.prompts
        try:
            panel.text_features([target.plain(prompt) for prompt in asked])
        except ValueError:
            raise InputInvalid("A prompt is longer than the judge can read. Shorten it.") from None


def _learned(model: DiffusionModel, file: Path, scale: float) -> tuple[TextEdit, Installation]:
    learned = ConceptWeights.load(file)
    reader = reader_of(learned)
    installation = reader.installation(model, learned)
    return reader.edit(model, learned), ((installation, scale),) if installation is not None else ()


def _photos(sitting: Sitting, inputs: Mapping[str, str], concept: PinnedConcept) -> Sight:
    files = [Path(inputs[photo.storage_key]) for photo in concept.photos]
    return sight(sitting.panel, photo_pixels(files, sitting.model.description.resolution))


def _parts(pairs: Sequence[tuple[PinnedWeights, str, PinnedConcept]], plans: Mapping[str, Plan]) -> int:
    """How many drawings there are: one a prompt and set."""
    classes = {_class_of(concept): concept.kind for _, _, concept in pairs}
    base = sum(SETS_OF_BASE * len(plans[kind].prompts) for kind in classes.values())
    return base + sum(SETS_OF_CONCEPT * len(plans[concept.kind].prompts) for _, _, concept in pairs)


def _class_of(concept: PinnedConcept) -> str:
    return f"{concept.kind} {concept.class_noun}"
