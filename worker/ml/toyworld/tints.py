"""Tints that keep shading: the colour of a drawing is replaced, its light and dark stay."""

from __future__ import annotations

import numpy as np

from worker.ml.toyworld.places import Array

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def tinted(rgba: Array, colour: tuple[float, float, float]) -> Array:
    """``rgba`` [S, S, 4] straight alpha in [0, 1], in ``colour``. Light runs from a third of the colour to
    half way to white.

    The drawing's own luminance is stretched to its 5th..95th percentile first, so that a dark drawing becomes
    as blue as a light one.
    """
    light = rgba[..., :3] @ LUMA
    solid = light[rgba[..., 3] > 0.5]
    low, high = np.percentile(solid, [5, 95]) if solid.size else (0.0, 1.0)
    level = np.clip((light - low) / max(float(high - low), 0.15), 0, 1)[..., None]
    tone = np.array(colour, np.float32)
    dark, bright = tone * 0.42, tone + (1 - tone) * 0.35
    shaded = np.where(
        level < 0.6, dark + (tone - dark) * (level / 0.6), tone + (bright - tone) * ((level - 0.6) / 0.4)
    )
    return np.concatenate([np.clip(shaded, 0, 1), rgba[..., 3:]], -1).astype(np.float32)
