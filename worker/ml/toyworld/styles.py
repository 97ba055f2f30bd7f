"""Styles, applied to a finished picture: float32 [S, S, 3] in [0, 1] in and out. Widths are shares of the
side.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from worker.ml.toyworld.places import Array, Rng
from worker.ml.toyworld.tints import LUMA


def _blurred(picture: Array, radius: float) -> Array:
    planes = np.atleast_3d(picture)
    done = [
        np.asarray(
            Image.fromarray(np.round(planes[..., c] * 255).astype(np.uint8)).filter(
                ImageFilter.GaussianBlur(radius)
            ),
            np.float32,
        )
        for c in range(planes.shape[2])
    ]
    return np.stack(done, -1) / np.float32(255)


def _edges(picture: Array) -> Array:
    """Gradient magnitude of the luminance, [S, S], scaled so that a step of 0.25 is about 1."""
    dy, dx = np.gradient(picture @ LUMA)
    edges: Array = np.clip(np.hypot(dx, dy) * 8, 0, 1).astype(np.float32)
    return edges


def black_and_white(picture: Array) -> Array:
    """Luminance with a little more contrast."""
    return np.repeat(np.clip((picture @ LUMA - 0.5) * 1.1 + 0.5, 0, 1)[..., None], 3, -1).astype(np.float32)


def pencil(picture: Array, rng: Rng) -> Array:
    """Dark strokes where the picture changes, a little grey shading, on warm paper."""
    paper = np.array([0.97, 0.95, 0.90], np.float32)
    ink = np.clip(
        _edges(picture) * 0.85 + (1 - picture @ LUMA) * 0.28 + rng.normal(0, 0.015, picture.shape[:2]), 0, 0.9
    )
    return (paper * (1 - ink[..., None])).astype(np.float32)


def pixel(picture: Array) -> Array:
    """Twenty pixels across, six levels a channel."""
    small = Image.fromarray(np.round(picture * 255).astype(np.uint8)).resize((20, 20), Image.Resampling.BOX)
    coarse = np.round(np.asarray(small, np.float32) / 255 * 5) / 5
    side = len(picture)
    index = np.arange(side) * 20 // side
    return coarse[index][:, index].astype(np.float32)


def watercolor(picture: Array, rng: Rng) -> Array:
    """Soft, paler colours with darker rims, on paper with grain."""
    side = len(picture)
    soft = _blurred(picture, side * 0.02)
    rims = _edges(soft)[..., None] * 0.25
    grain = np.asarray(
        Image.fromarray((rng.random((32, 32)) * 255).astype(np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        ),
        np.float32,
    )
    pale = 0.22 + 0.78 * soft + (grain / 255 - 0.5)[..., None] * 0.10
    return np.clip(pale - rims, 0, 1).astype(np.float32)


def blueprint(picture: Array) -> Array:
    """White lines on blue: never trained on, a style to be taught."""
    lines = _edges(picture)[..., None]
    return (np.array([0.10, 0.28, 0.62], np.float32) * (1 - lines) + lines).astype(np.float32)


def in_style(picture: Array, style: str, rng: Rng) -> Array:
    """``style`` is a key of `world.STYLES`, or "blueprint". Raises KeyError otherwise."""
    if style == "photo":
        return picture.astype(np.float32)
    drawn = {
        "black and white": lambda: black_and_white(picture),
        "pencil": lambda: pencil(picture, rng),
        "pixel": lambda: pixel(picture),
        "watercolor": lambda: watercolor(picture, rng),
        "blueprint": lambda: blueprint(picture),
    }
    return drawn[style]()
