"""Photos as latents: a bank of augmented views, encoded once, so that the autoencoder never runs inside a
step.

Departure from the reference, which augments and encodes anew in every step: each photo gets a fixed number of
views, drawn from the same distribution, and steps deal them out from a shuffled deck. With
``VIEWS_PER_PHOTO`` views a photo, a training of some hundred steps sees every view a handful of times, each
time with other noise and another time step. The bank is a pure function of photos, seed and parameters: after
an interruption it is rebuilt identically.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.streams import draw_order, rng
from worker.ml.training.augmentation import draw_view, open_square, render

VIEWS_PER_PHOTO = 24
VIEWS_PER_PLAIN_PHOTO = 4
VIEWS_IN_ALL = 480
"""Above twenty photos each gets fewer views, though never fewer than a plain one."""
ENCODED_AT_ONCE = 4
"""Fixed, because the bits of an encoded view may depend on the size of its batch."""


@dataclass(frozen=True, eq=False)
class Bank:
    """latents [M, C, h, w], masks [M, 1, h, w], caption prefixes [M]."""

    latents: Tensor
    masks: Tensor
    prefixes: tuple[str, ...]

    def deal(self, seed: int, stream: str, first: int, count: int) -> list[int]:
        """Entries at places ``first ...`` of the endless shuffled deck."""
        return draw_order(seed, stream, first, count, len(self.prefixes))


def build_bank(
    model: DiffusionModel,
    photos: Sequence[Path],
    *,
    seed: int,
    stream: str,
    augment: bool,
    flip: bool,
    run: Run,
) -> Bank:
    """Encodes views of ``photos`` at the base model's resolution, every photo as often as every other.

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
            views.append(render(photo, draw_view(size, dice, augment=augment, flip=flip), size, model.cell))
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
