"""Views for the halves of a collage: the whole subject at half the width, on the ground of its own photo.

Cut-Mix puts the middles of two photos side by side (`worker.ml.training.collages`), as large as they are: of a subject
that is wider than half of its photo the flanks are lost, and what is learned is a size at which two never stand beside
each other. Where it is known where the subject is (`worker.ml.training.subject_masks`), the photo is made smaller until
the subject fits into a half, and is continued beyond its edges with what stands there. Seg-Mix pastes segments for the
same reason (SVDiff's successors, methods.md 13.3); here the ground stays, and the mask says what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.streams import rng
from worker.ml.training.augmentation import square_pixels
from worker.ml.training.dataset import ENCODED_AT_ONCE, Bank
from worker.ml.training.subject_masks import SubjectMasks

VIEWS_PER_PHOTO = 8
SMALLEST, LARGEST = 0.40, 0.50
"""Side of the subject's square, in shares of the picture's: at the most as wide as the half."""
DOWNWARDS = 0.12
"""How far below the middle of the picture the subject's may be, in shares of the side: things stand on grounds."""


@dataclass(frozen=True)
class HalfDraw:
    """What chance decided: where the subject's square is to be, in pixels of the picture."""

    size_px: int
    left_px: int
    top_px: int
    mirrored: bool


def draw_half(size_px: int, dice: torch.Generator, *, flip: bool) -> HalfDraw:
    """For a picture of ``size_px``, whose middle half becomes the half of a collage; pure in ``dice``."""
    chance = torch.rand(4, generator=dice).tolist()
    side = round((SMALLEST + (LARGEST - SMALLEST) * chance[0]) * size_px)
    left = size_px // 4 + round(chance[1] * max(0, size_px // 2 - side))
    top = round((0.5 + DOWNWARDS * chance[2]) * size_px) - side // 2
    return HalfDraw(side, left, min(max(top, 0), size_px - side), flip and chance[3] < 0.5)


def half_view(
    photo: Tensor, mask: Tensor, square: tuple[int, int, int], draw: HalfDraw
) -> tuple[Tensor, Tensor]:
    """The ``photo`` [3, S, S] made smaller or larger so that its ``square`` (left, top, side) lies where ``draw`` says,
    continued beyond its edges; and its ``mask`` [1, S, S] there, 0 beyond: the same shapes.
    """
    size, (left, top, side) = photo.shape[-1], square
    if draw.mirrored:
        photo, mask, left = photo.flip(-1), mask.flip(-1), size - left - side
    scale = draw.size_px / side
    resized = max(1, round(size * scale))
    both = torch.cat([photo, mask.to(photo)])[None]
    small = interpolate(both, size=(resized, resized), mode="bilinear", antialias=True)[0]
    columns = torch.arange(size) - draw.left_px + round(left * scale)
    rows = torch.arange(size) - draw.top_px + round(top * scale)
    inside = _within(rows, resized)[:, None] & _within(columns, resized)[None]
    seen = small[:, rows.clamp(0, resized - 1)][:, :, columns.clamp(0, resized - 1)]
    return seen[:3], seen[3:] * inside


def _within(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)


def build_half_views(
    model: DiffusionModel,
    photos: Sequence[Path],
    subjects: SubjectMasks,
    *,
    seed: int,
    stream: str,
    flip: bool,
    run: Run,
) -> Bank:
    """Encodes `VIEWS_PER_PHOTO` views of every photo. A pure function of photos, masks and seed.

    ``run.step("photos", ...)`` after each batch. Raises `InputInvalid`.
    """
    size = model.description.resolution
    squares, views, masks = subjects.squares(), list[Tensor](), list[Tensor]()
    for number, path in enumerate(photos):
        photo, mask = square_pixels(path, size), subjects.masks[number]
        for view in range(VIEWS_PER_PHOTO):
            dice = rng(seed, f"{stream}/view", number * VIEWS_PER_PHOTO + view)
            pixels, inside = half_view(photo, mask, squares[number], draw_half(size, dice, flip=flip))
            views.append(pixels)
            masks.append(subjects.lowered(torch.ones(1, size // model.cell, size // model.cell), inside))
    latents = []
    for first in range(0, len(views), ENCODED_AT_ONCE):
        pixels = torch.stack(views[first : first + ENCODED_AT_ONCE])
        latents.append(model.encode_images(pixels, rng(seed, f"{stream}/posterior", first)).float())
        run.step("photos", min(first + ENCODED_AT_ONCE, len(views)), len(views))
    return Bank(torch.cat(latents), torch.stack(masks).to(model.device), ("",) * len(views))
