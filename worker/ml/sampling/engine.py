"""Drawing pictures: units of any jobs, concepts and owners in, finished pixels out, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, TextEdit
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.methods import method_of
from worker.ml.run import Run
from worker.ml.sampling.latents import Picture, sample_latents
from worker.ml.sampling.pixels import to_uint8


@dataclass(frozen=True)
class GenerationUnit:
    """One picture: all that it depends on beside the base model. Texts are encoder texts, sizes are pixels."""

    index: int
    text: str
    negative_text: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    weights: tuple[tuple[ConceptWeights, float], ...] = ()


def generate(
    model: DiffusionModel, units: Sequence[GenerationUnit], run: Run, *, batch_size: int | None = None
) -> Iterator[tuple[GenerationUnit, NDArray[np.uint8]]]:
    """Yields (unit, uint8 [H, W, 3]) as batches finish. Units that agree in size, scheduler, steps and
    what must be installed share batches.

    ``run.step("images", ...)`` every solver step. Raises `InputInvalid`, `PromptTooLong`, `WeightsInvalid`,
    `MethodUnsupported` before the first step, and what `Run.step` raises.
    """
    edits: dict[int, tuple[TextEdit, WeightEdit | None]] = {}
    pictures = [_picture(model, unit, edits) for unit in units]
    for place, latents in sample_latents(model, pictures, run, "images", batch_size=batch_size):
        yield units[place], to_uint8(model.decode_latents(latents[None]))[0]


def _picture(
    model: DiffusionModel, unit: GenerationUnit, edits: dict[int, tuple[TextEdit, WeightEdit | None]]
) -> Picture:
    """``edits`` holds one edit per weights object, so that equal prompts are recognised as equal."""
    for weights, _ in unit.weights:
        if id(weights) not in edits:
            method = method_of(weights)
            edits[id(weights)] = method.edit(model, weights), method.installation(model, weights)
    chosen = tuple((edits[id(weights)][0], scale) for weights, scale in unit.weights)
    installations = ((edits[id(weights)][1], scale) for weights, scale in unit.weights)
    return Picture(
        prompt=Prompt(unit.text, chosen),
        negative=Prompt(unit.negative_text, chosen, negative=True),
        seed=unit.seed,
        num_inference_steps=unit.num_inference_steps,
        guidance_scale=unit.guidance_scale,
        scheduler=unit.scheduler,
        width=unit.width,
        height=unit.height,
        installation=tuple(
            (edit, scale) for edit, scale in installations if edit is not None and scale != 0.0
        ),
    )
