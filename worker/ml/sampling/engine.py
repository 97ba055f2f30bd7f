"""Drawing pictures: units of any jobs, concepts and owners in, finished pixels out, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import installed
from worker.ml.regions import USUAL_SHARE, BaseShare, Box
from worker.ml.run import Run
from worker.ml.sampling.attention_guidance import AttentionGuidance
from worker.ml.sampling.composition import Composition
from worker.ml.sampling.latents import ConditioningCache, Picture, RunWatch, Watch, check, watched_latents
from worker.ml.sampling.pixels import to_uint8
from worker.ml.sampling.regions import RegionPrompt, all_prompts
from worker.ml.word_positions import subject_words

Weighed = tuple[tuple[ConceptWeights, float], ...]
"""Weights with their scales."""


@dataclass(frozen=True)
class RegionUnit:
    """A box of a picture: its encoder text, and the weights that act on it alone."""

    text: str
    box: Box
    weights: Weighed = ()


@dataclass(frozen=True)
class GenerationUnit:
    """One picture: all that it depends on beside the base model. Texts are encoder texts, sizes are pixels.
    ``weights`` act on ``text``; ``share`` is what it keeps inside the boxes of ``regions``. ``attention_guidance`` in
    steps of the paper, 0 for none; to the subjects ``attended`` by the tokens in the text, None for all. ``apart``: a
    pass for every region, whose text names its subject alone, and ``text`` none of them.
    """

    index: int
    text: str
    negative_text: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    weights: Weighed = ()
    regions: tuple[RegionUnit, ...] = ()
    share: BaseShare = USUAL_SHARE
    attention_guidance: float = 0.0
    apart: bool = False
    attended: tuple[str, ...] | None = None


def generate(
    model: DiffusionModel, units: Sequence[GenerationUnit], run: Run, *, batch_size: int | None = None
) -> Iterator[tuple[GenerationUnit, NDArray[np.uint8]]]:
    """Yields (unit, uint8 [H, W, 3]) as batches finish. Units that agree in size, scheduler, steps and
    what must be installed share batches.

    ``run.step("images", ...)`` every solver step. Raises `InputInvalid`, `PromptTooLong`, `WeightsInvalid`,
    `MethodUnsupported` before the first step, and what `Run.step` raises.
    """
    made = pictures(model, units)
    for place, pixels in draw(model, made, RunWatch(run, "images", made), batch_size=batch_size):
        yield units[place], pixels


def pictures(
    model: DiffusionModel, units: Sequence[GenerationUnit], cache: ConditioningCache | None = None
) -> list[Picture]:
    """Recipes with their weights resolved. With a ``cache`` their keys and values are computed now, so that
    whatever is wrong with them is raised here, before they meet others in a batch.

    Raises `InputInvalid`, `PromptTooLong`, `WeightsInvalid`, `MethodUnsupported`.
    """
    composition = Composition(model)
    made = [_picture(model, unit, composition) for unit in units]
    for picture in made:
        check(model, picture)
        if cache is not None:
            for installation, texts in all_prompts(picture).items():
                with torch.no_grad(), installed(model, installation):
                    cache.rows(model, texts, installation)
    return made


def draw(
    model: DiffusionModel,
    made: Sequence[Picture],
    watch: Watch,
    *,
    cache: ConditioningCache | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yields (place in ``made``, uint8 [H, W, 3]) as batches finish; see `watched_latents`."""
    for place, latents in watched_latents(model, made, watch, batch_size=batch_size, cache=cache):
        yield place, to_uint8(model.decode_latents(latents[None]))[0]


def _picture(model: DiffusionModel, unit: GenerationUnit, composition: Composition) -> Picture:
    edits, installation = composition.of(unit.weights)
    regions = []
    for region in unit.regions:
        inside, needed = composition.of(region.weights)
        negative = Prompt(unit.negative_text, inside, negative=True)
        regions.append(RegionPrompt(Prompt(region.text, inside), negative, region.box, needed))
    return Picture(
        prompt=Prompt(unit.text, edits),
        negative=Prompt(unit.negative_text, edits, negative=True),
        seed=unit.seed,
        num_inference_steps=unit.num_inference_steps,
        guidance_scale=unit.guidance_scale,
        scheduler=unit.scheduler,
        width=unit.width,
        height=unit.height,
        installation=installation,
        regions=tuple(regions),
        share=unit.share,
        attention=_attention(model, unit, Prompt(unit.text, edits)),
        apart=unit.apart and bool(regions),
    )


def _attention(model: DiffusionModel, unit: GenerationUnit, prompt: Prompt) -> AttentionGuidance | None:
    if unit.attention_guidance <= 0.0:
        return None
    taught = [each for weights, _ in unit.weights for each in weights.manifest.tokens]
    words = subject_words(model, prompt, taught)
    attended = words if unit.attended is None else [token for token in words if token in unit.attended]
    return AttentionGuidance(unit.attention_guidance, tuple(words[token] for token in attended))
