"""Companions: a subject is taught beside other things, so that it keeps its place in a picture of several.

Photos show their subject alone and their captions name it alone, so what is learned holds for one subject in the
middle; in "a <stark> dog and a guitar" the word stands in another company of text states and the subject at half the
size, and it is lost. Cut-Mix (`worker.ml.training.collages`) needs a second concept that trains along. Here the base
model's own pictures of the class *and another thing* take its place: a photo, made smaller, is pasted over the half of
such a picture where the class should stand, and the caption names the placeholder where the picture's named the class.
As with the small views of the augmentation (methods.md 4) only the pasted box, less one latent cell a side, counts:
the companion is seen and not learned. The pictures as they are, with their own captions, are prior images as well.

A caption names from left to right, as a reader expects; where the base model puts things elsewhere, the pasted photo
still stands where its caption says. This is our own; what it brings is in ``benchmarks/results``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.streams import rng
from worker.ml.training.augmentation import Draw, open_square, render
from worker.ml.training.captions import ARTICLE, with_article
from worker.ml.training.dataset import ENCODED_AT_ONCE, PHOTOS_TOGETHER
from worker.ml.training.prior import CHUNK, PriorImages, ensure_prior

if TYPE_CHECKING:
    from worker.ml.training.lessons import ConceptExamples

COMPANIONS = 8
"""Other things, each in one of the surroundings, left and right of the subject in turn."""
VIEWS_PER_PICTURE = 2
SMALLEST, LARGEST = 0.44, 0.58
"""Side of the pasted photo, in shares of the picture's: two subjects of these sizes stand side by side."""


@dataclass(frozen=True, eq=False)
class Companions:
    """latents [M, C, h, w], masks [M, 1, h, w] and captions [M] of photos among companions, and ``pictures``, the base
    model's own that they were pasted into.
    """

    latents: Tensor
    masks: Tensor
    captions: tuple[str, ...]
    pictures: PriorImages

    def deal(self, count: int, prior: bool, dice: torch.Generator) -> list[int]:
        """``count`` entries of one caption, by chance: text encoders cost by the caption."""
        captions = self.pictures.captions if prior else self.captions
        distinct = list(dict.fromkeys(captions))
        chosen = distinct[_below(len(distinct), dice)]
        held = [at for at, caption in enumerate(captions) if caption == chosen]
        return [held[_below(len(held), dice)] for _ in range(count)]


@dataclass(frozen=True)
class Company:
    """A caption with the placeholder and its plain form; whether the subject stands on the left."""

    caption: str
    plain: str
    left: bool


def companies(concept: ConceptExamples, nouns: Sequence[str], examples: Sequence[str]) -> list[Company]:
    """At most ``COMPANIONS``; empty for a style or where there is no class noun or no other thing."""
    noun = concept.class_noun
    others = [other for other in nouns if other.lower() != noun.lower()]
    if concept.kind == "style" or not noun or not others:
        return []
    places = [
        example for example in examples if "{}" in example and not ARTICLE.search(example.split("{}")[0])
    ] or ["photo of {}"]
    stride = max(1, len(others) // COMPANIONS)
    found = []
    for at, other in enumerate(others[::stride][:COMPANIONS]):
        left, place = at % 2 == 0, places[at % len(places)]

        def told(own: str, place: str = place, other: str = other, left: bool = left) -> str:
            pair = (own, with_article(other)) if left else (with_article(other), own)
            return place.replace("{}", " and ".join(pair), 1)

        found.append(Company(told(f"a <{concept.token}> {noun}"), told(with_article(noun)), left))
    return found


def build_companions(
    model: DiffusionModel,
    concept: ConceptExamples,
    photos: Sequence[Path],
    *,
    prior_steps: int,
    flip: bool,
    seed: int,
    cache_dir: Path,
    run: Run,
) -> Companions | None:
    """None where the concept has no `companies`. The base's pictures are kept like all prior images."""
    found = companies(concept, model.description.class_nouns, model.description.example_prompts)
    if not found:
        return None
    pictures = ensure_prior(
        model,
        [company.plain for company in found],
        count=CHUNK * len(found),
        steps=prior_steps,
        cache_dir=cache_dir,
        run=run,
    )
    size, cell = model.description.resolution, model.cell
    squares = [open_square(path, size) for path in photos]
    latents, masks, captions = [], [], list[str]()
    stream = f"companions/{concept.token}"
    for first in range(0, len(pictures.captions), ENCODED_AT_ONCE):
        under = model.decode_latents(pictures.latents[first : first + ENCODED_AT_ONCE]).float().cpu()
        for turn in range(VIEWS_PER_PICTURE):
            views = []
            for offset, canvas in enumerate(under):
                company, number = found[(first + offset) // CHUNK], (first + offset) * VIEWS_PER_PICTURE + turn
                dice = rng(seed, f"{stream}/view", number)
                square = squares[number % len(squares)]
                draw = place_draw(size, company.left, dice, flip=flip)
                view = render(square, draw, size, cell)
                box = (
                    slice(draw.top_px, draw.top_px + draw.size_px),
                    slice(draw.left_px, draw.left_px + draw.size_px),
                )
                pixels = canvas.clamp(-1.0, 1.0).clone()
                pixels[:, *box] = view.pixels[:, *box]
                views.append(pixels)
                masks.append(view.mask)
                captions.append(company.caption)
            posterior = rng(seed, f"{stream}/posterior", first * VIEWS_PER_PICTURE + turn)
            latents.append(model.encode_images(torch.stack(views), posterior).float())
        run.step("photos", first + len(under), len(pictures.captions))
    return Companions(torch.cat(latents), torch.stack(masks).to(model.device), tuple(captions), pictures)


def place_draw(size_px: int, left: bool, dice: torch.Generator, *, flip: bool) -> Draw:
    """Where a photo is pasted: in its half, its middle a little below the picture's, as things stand on grounds."""
    chance = torch.rand(4, generator=dice).tolist()
    side = round((SMALLEST + (LARGEST - SMALLEST) * chance[0]) * size_px)
    room = max(0, size_px // 2 - side) + round(0.06 * size_px)
    start = round(chance[1] * room)
    top = round((0.5 + 0.16 * chance[2]) * size_px) - side // 2
    return Draw(
        side,
        start if left else size_px - side - start,
        min(max(top, 0), size_px - side),
        "",
        flip and chance[3] < 0.5,
    )


def _below(count: int, dice: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=dice))
