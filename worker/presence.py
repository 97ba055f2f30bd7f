"""Pictures of a generation are looked at, and drawn again from other seeds until nobody is missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.schemas.executor import Succeeded
from backend.schemas.generations import GenerateSpec, GuidedAttention
from backend.schemas.presence import Frame, Presence, PresenceCheck, WordAttention
from worker.counted_run import CountedRun
from worker.drawing import Order
from worker.ml.evaluation.measures import photo_pixels
from worker.ml.evaluation.panel import Panel
from worker.ml.evaluation.presence import Sought, look
from worker.ml.evaluation.word_attention import SAME_PLACE, Acting, acting, in_common
from worker.ml.families import DiffusionModel
from worker.ml.regions import Box
from worker.ml.run import Run
from worker.ml.sampling.engine import GenerationUnit, generate, pictures
from worker.ml.sampling.latents import Picture
from worker.ml.word_positions import Word, subject_words
from worker.pipe_run import PHASES, Reporter
from worker.recipes import taught_tokens

DRAWN_A_TRY = 2
"""The picture, and the base model's to compare it with."""


Try = tuple[GenerationUnit, NDArray[np.uint8], list[Presence], GuidedAttention | None]


def draw_and_look(model: DiffusionModel, panel: Panel, reporter: Reporter, run: Run) -> Succeeded:
    """All pictures of the job that are not drawn yet. Of several tries the one with the most concepts is kept, of
    those the first with the fewest missing or fused; of whom nothing can be told, nobody is missing. Tries
    after the first are guided to everybody who was missing or fused before, where the check asks for it.
    """
    order = Order(reporter)
    assert order.spec.check is not None
    looker = Looker(model, panel, order.spec.check, order.spec, reporter.job.inputs)
    units, tries = order.units(), order.spec.check.retries + 1
    counted = CountedRun(run, len(units) * tries * DRAWN_A_TRY)
    for place, unit in enumerate(units):
        # Tries that were spared count as made, so that progress never goes back.
        counted.ended = place * tries * DRAWN_A_TRY
        best: tuple[tuple[int, int], Try] | None = None
        lost: dict[str, None] = {}
        for attempt in range(tries):
            tried, attention = replace(unit, seed=seed_of(order.spec, unit.index, attempt)), None
            if guided := looker.to_guide(unit, lost):
                attention = GuidedAttention(scale=order.spec.check.guidance_of_missing, concepts=list(guided))
                tried = replace(tried, attention_guidance=attention.scale, attended=tuple(guided.values()))
            ((_, pixels),) = generate(model, [tried], counted)
            seen = looker.look(pixels, tried, counted)
            absent = [each.concept for each in seen if each.state in ("missing", "fused")]
            rank = sum(each.state == "present" for each in seen), -len(absent)
            if best is None or rank > best[0]:
                best = rank, (tried, pixels, seen, attention)
            if not absent:
                break
            lost |= dict.fromkeys(absent)
        assert best is not None
        order.keep(*best[1])
    whole = counted.total * order.spec.num_inference_steps
    reporter.progress(PHASES["images"], whole, whole)
    return order.succeeded()


def seed_of(spec: GenerateSpec, index: int, attempt: int) -> int:
    """Seed of picture ``index`` in try ``attempt`` (from 0): no two pictures of a job ever share one."""
    return (spec.seed + index + attempt * spec.num_images) % 2**32


class Looker:
    """Looks at pictures for the concepts of one generation."""

    def __init__(
        self,
        model: DiffusionModel,
        panel: Panel,
        check: PresenceCheck,
        spec: GenerateSpec,
        inputs: Mapping[str, str],
    ) -> None:
        self._model, self._panel, self._check = model, panel, check
        self._words = taught_tokens(spec)
        side = model.description.resolution
        boxes = [
            Box(each.x, each.y, each.width, each.height)
            for each in (spec.layout.regions if spec.layout else ())
        ]
        self._sought = []
        for concept in check.concepts:
            files = [Path(inputs[photo.storage_key]) for photo in concept.photos]
            own = tuple(box for box, there in zip(boxes, check.regions, strict=True) if concept.id in there)
            self._sought.append(Sought(panel.subject_features(photo_pixels(files, side)), own))
        self._base: dict[int, Tensor] = {}

    def look(self, pixels: NDArray[np.uint8], unit: GenerationUnit, run: Run) -> list[Presence]:
        """``unit`` drew ``pixels`` [H, W, 3]. The base model draws its seed with class nouns alone, to compare with."""
        plain = replace(unit, text=self._check.plain_text, weights=(), regions=(), attention_guidance=0.0)
        ((_, base),) = generate(self._model, [plain], run)
        found = look(self._panel, _unit_range(pixels), _unit_range(base), self._sought)
        attention = self._attention(pixels, unit)
        return [
            Presence(
                concept=concept.id, token=concept.token, state=seen.state, score=seen.score,
                box=_frame(seen.box), attention=attention.get(concept.id),
            )
            for concept, seen in zip(self._check.concepts, found, strict=True)
        ]  # fmt: skip

    def to_guide(self, unit: GenerationUnit, concepts: Collection[str]) -> dict[str, str]:
        """{concept: token in the text} of those to whom attention is to be guided in ``unit``: nobody unless that was
        asked, and nobody whose word is not in its prompt.
        """
        if not concepts or not self._check.guidance_of_missing or unit.regions:
            return {}
        _, words = self._words_of(unit)
        return {one: self._words[one] for one in concepts if self._words.get(one) in words}

    def _words_of(self, unit: GenerationUnit) -> tuple[Picture, dict[str, Word]]:
        (picture,) = pictures(self._model, [replace(unit, attention_guidance=0.0)])
        taught = [each for weights, _ in unit.weights for each in weights.manifest.tokens]
        return picture, subject_words(self._model, picture.prompt, taught)

    def _attention(self, pixels: NDArray[np.uint8], unit: GenerationUnit) -> dict[str, WordAttention]:
        """{concept: where its word acts}, of those that the picture's own prompt names. In a picture with regions words
        act where their boxes are.
        """
        if unit.regions:
            return {}
        picture, words = self._words_of(unit)
        named = [one for one in self._check.concepts if self._words.get(one.id) in words]
        if not named:
            return {}
        places = acting(
            self._model, picture, [words[self._words[one.id]] for one in named], _unit_range(pixels)
        )
        tokens = [one.token for one in named]
        return {
            one.id: _told(
                own, [(token, place) for token, place in zip(tokens, places, strict=True) if place is not own]
            )
            for one, own in zip(named, places, strict=True)
        }


def _told(own: Acting, others: Sequence[tuple[str, Acting]]) -> WordAttention:
    same = [token for token, other in others if in_common(own.box, other.box) >= SAME_PLACE]
    return WordAttention(share=own.share, box=_frame(own.box), same_place=same)


def _frame(box: Box) -> Frame:
    return Frame(x=box.x, y=box.y, width=box.width, height=box.height)


def _unit_range(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)) / 127.5 - 1
