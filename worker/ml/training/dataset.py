"""Photos as latents: a bank of augmented views, encoded once, so that the autoencoder never runs inside a step.

Two departures from the reference, which augments and encodes anew in every step.

Each photo gets a fixed number of views, drawn from the same distribution, and steps deal them out from a
shuffled deck. With ``VIEWS_PER_PHOTO`` views a photo, a training of some hundred steps sees every view a
handful of times, each time with other noise and another time step.

Decks deal views of one caption together: photos in pairs, prior images in fours. Every view comes up as often as
before, but four photos have 1.75 different captions on average and not 2.8, and each of them costs a pass of the text
encoder, forward and backward.

The bank is a pure function of photos, seed and parameters: after an interruption it is rebuilt identically.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.streams import rng
from worker.ml.training.augmentation import draw_view, open_square, render
from worker.ml.training.subject_masks import SubjectMasks

VIEWS_PER_PHOTO = 24
VIEWS_PER_PLAIN_PHOTO = 4
VIEWS_IN_ALL = 480
"""Above twenty photos each gets fewer views, though never fewer than a plain one."""
PHOTOS_TOGETHER, PRIOR_TOGETHER = 2, 4
"""Views of one caption that a deck deals one after another."""
ENCODED_AT_ONCE = 4
"""Fixed, because the bits of an encoded view may depend on the size of its batch."""


@dataclass(frozen=True, eq=False)
class Bank:
    """latents [M, C, h, w], masks [M, 1, h, w], caption prefixes [M]."""

    latents: Tensor
    masks: Tensor
    prefixes: tuple[str, ...]


def deal(
    captions: Sequence[str], seed: int, stream: str, *, first: int, count: int, together: int
) -> list[int]:
    """Entries at places ``first ... first + count - 1`` of an endless shuffled deck with these captions.

    Each pass over the deck is a permutation. ``together`` entries of one caption follow one another, as far as numbers
    allow.
    """
    size = len(captions)
    places = range(first, first + count)
    decks = {
        epoch: _deck(captions, rng(seed, stream, epoch), together)
        for epoch in {place // size for place in places}
    }
    return [decks[place // size][place % size] for place in places]


def _deck(captions: Sequence[str], dice: torch.Generator, together: int) -> list[int]:
    by_caption: dict[str, list[int]] = {}
    for entry in torch.randperm(len(captions), generator=dice).tolist():
        by_caption.setdefault(captions[entry], []).append(entry)
    whole = {caption: len(held) // together * together for caption, held in by_caption.items()}
    left = [entry for caption, held in by_caption.items() for entry in held[whole[caption] :]]
    hands = [
        held[i : i + together]
        for caption, held in by_caption.items()
        for i in range(0, whole[caption], together)
    ]
    hands += [left[i : i + together] for i in range(0, len(left) // together * together, together)]
    order = torch.randperm(len(hands), generator=dice).tolist()
    return [entry for place in order for entry in hands[place]] + left[len(left) // together * together :]


def build_bank(
    model: DiffusionModel,
    photos: Sequence[Path],
    *,
    seed: int,
    stream: str,
    augment: bool,
    flip: bool,
    run: Run,
    masks: SubjectMasks | None = None,
) -> Bank:
    """Encodes views of ``photos`` at the base model's resolution, every photo as often as every other; with ``masks``
    of the photos the masks of views are lowered beside the subject.

    Latents are a seeded draw from the autoencoder's posterior. ``run.step("photos", ...)`` after each batch.
    The bank does not depend on the number of steps: a shorter training is the beginning of a longer one.
    Raises `InputInvalid`.
    """
    size = model.description.resolution
    per_photo = VIEWS_PER_PLAIN_PHOTO
    if augment:
        per_photo = max(per_photo, min(VIEWS_PER_PHOTO, VIEWS_IN_ALL // len(photos)))
    views = []
    for number, path in enumerate(photos):
        photo = open_square(path, size)
        for view in range(per_photo):
            dice = rng(seed, f"{stream}/view", number * per_photo + view)
            draw = draw_view(size, dice, augment=augment, flip=flip)
            seen = render(photo, draw, size, model.cell)
            views.append(replace(seen, mask=masks.weighed(seen.mask, number, draw)) if masks else seen)
    latents = []
    for chunk in range(0, len(views), ENCODED_AT_ONCE):
        pixels = torch.stack([view.pixels for view in views[chunk : chunk + ENCODED_AT_ONCE]])
        latents.append(model.encode_images(pixels, rng(seed, f"{stream}/posterior", chunk)).float())
        run.step("photos", min(chunk + ENCODED_AT_ONCE, len(views)), len(views))
    return Bank(
        torch.cat(latents),
        torch.stack([view.mask for view in views]).to(model.device),
        tuple(view.prefix for view in views),
    )
