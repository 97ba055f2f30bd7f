"""Resizing a photo at random and saying so in the caption (methods.md 4, "Augmentation").

With S the training size: with probability 1/3 a size r in [1.2 S, 1.4 S) of which a random S-crop is taken,
"zoomed in" or "close up"; with 2/3 r in [S/3, S]: below 0.6 S the photo is pasted at a random place of a
mid-grey canvas, "a far away" or "very small", and only the pasted box less one latent cell a side counts;
from 0.6 S on it is used as it is. The paper says 0.4 to 1.4 S; the reference code's floor is S/3, and its
results are the published ones (methods.md 18).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from worker.ml.errors import InputInvalid

ZOOMED = ("zoomed in", "close up")
SMALL = ("a far away", "very small")


@dataclass(frozen=True, eq=False)
class View:
    """pixels [3, S, S] in [-1, 1]; mask [1, S / cell, S / cell] in {0, 1}; prefix: words before the caption,
    or empty.
    """

    pixels: Tensor
    mask: Tensor
    prefix: str


@dataclass(frozen=True)
class Draw:
    """What chance decided. ``size_px`` of the resized photo; ``left_px``, ``top_px``: of the crop in it, or
    of it on the canvas.
    """

    size_px: int
    left_px: int
    top_px: int
    prefix: str
    mirrored: bool


def open_square(path: Path, size_px: int) -> Image.Image:
    """The centre square of a photo, upright RGB, shrunk to ``2 size_px`` where larger. Raises `InputInvalid`."""
    try:
        with Image.open(path) as opened:
            photo = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise InputInvalid("A photo cannot be decoded.") from None
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    return square if side <= 2 * size_px else square.resize((2 * size_px,) * 2, Image.Resampling.LANCZOS)


def square_pixels(path: Path, size_px: int) -> Tensor:
    """`open_square` at exactly ``size_px``: [3, S, S] in [-1, 1]."""
    return _pixels(open_square(path, size_px).resize((size_px, size_px), Image.Resampling.BICUBIC))


def draw_view(size_px: int, rng: torch.Generator, *, augment: bool, flip: bool) -> Draw:
    """Throws all dice for one view of side S = ``size_px``; pure in ``rng``."""
    chance = torch.rand(3, generator=rng).tolist()
    mirrored = flip and chance[0] < 0.5
    if not augment:
        return Draw(size_px, 0, 0, "", mirrored)
    if chance[1] < 1 / 3:
        resized = _integer(rng, round(1.2 * size_px), round(1.4 * size_px))
        room, words = resized - size_px, ZOOMED
    else:
        resized = _integer(rng, size_px // 3, size_px + 1)
        if resized >= 0.6 * size_px:
            return Draw(size_px, 0, 0, "", mirrored)
        room, words = size_px - resized, SMALL
    left, top = _integer(rng, 0, room + 1), _integer(rng, 0, room + 1)
    return Draw(resized, left, top, words[int(chance[2] * len(words))], mirrored)


def render(photo: Image.Image, draw: Draw, size_px: int, cell: int) -> View:
    """The view that ``draw`` describes, of a square photo. ``cell``: pixels per latent cell."""
    photo = ImageOps.mirror(photo) if draw.mirrored else photo
    pixels = _pixels(photo.resize((draw.size_px, draw.size_px), Image.Resampling.BICUBIC))
    pixels = _in_view(pixels, draw, size_px)
    mask = torch.ones(1, size_px // cell, size_px // cell)
    if draw.size_px < size_px:
        mask.zero_()
        top, left = draw.top_px // cell + 1, draw.left_px // cell + 1
        bottom, right = (draw.top_px + draw.size_px) // cell - 1, (draw.left_px + draw.size_px) // cell - 1
        mask[:, top : max(bottom, top + 1), left : max(right, left + 1)] = 1.0
    return View(pixels.contiguous(), mask, draw.prefix)


def placed(plane: Tensor, draw: Draw) -> Tensor:
    """A plane [C, S, S] of a square photo as `render` places the photo itself: the same shape, 0 beside it."""
    plane = plane.flip(-1) if draw.mirrored else plane
    resized = interpolate(plane[None], size=(draw.size_px,) * 2, mode="bilinear", antialias=True)[0]
    return _in_view(resized, draw, plane.shape[-1])


def _in_view(pixels: Tensor, draw: Draw, size_px: int) -> Tensor:
    """The part of a resized plane [C, r, r] that is seen, or all of it on a canvas of 0: [C, S, S]."""
    if draw.size_px >= size_px:
        return pixels[:, draw.top_px : draw.top_px + size_px, draw.left_px : draw.left_px + size_px]
    canvas = torch.zeros(len(pixels), size_px, size_px)
    canvas[:, draw.top_px : draw.top_px + draw.size_px, draw.left_px : draw.left_px + draw.size_px] = pixels
    return canvas


def _integer(rng: torch.Generator, low: int, high: int) -> int:
    """Uniform in [low, high)."""
    return int(torch.randint(low, max(high, low + 1), (), generator=rng))


def _pixels(image: Image.Image) -> Tensor:
    """[3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1)
