"""A bank of painted sprites: a shape for every class, a shade for every designer. No icons, no Node."""

from __future__ import annotations

import zlib

import numpy as np

from worker.ml.toyworld.places import Array
from worker.ml.toyworld.scenes import SpriteBank
from worker.ml.toyworld.sprites import DESIGNERS, SpriteKey
from worker.ml.toyworld.world import NOUNS


def painted(key: SpriteKey, px: int = 64) -> Array:
    """A star-shaped blob, lit from above; its outline depends on the class, its colour on the designer."""
    rng = np.random.default_rng([zlib.crc32(key.noun.encode()), zlib.crc32(key.designer.encode())])
    axis = (np.arange(px) + 0.5) / px - 0.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    points = 3 + zlib.crc32(key.noun.encode()) % 7
    outline = 0.38 * (1 + 0.2 * np.cos(points * np.arctan2(y, x)))
    shade = rng.uniform(0.2, 0.9, 3) * (0.8 - 0.6 * y)[..., None]
    alpha = (np.hypot(x, y) < outline)[..., None].astype(np.float32)
    return np.concatenate([np.clip(shade, 0, 1) * alpha, alpha], -1).astype(np.float32)


def painted_bank() -> SpriteBank:
    """Every class by every designer, held-out subjects among them."""
    keys = [SpriteKey(noun, designer) for noun in NOUNS for designer in DESIGNERS]
    return SpriteBank({key: painted(key) for key in keys})
