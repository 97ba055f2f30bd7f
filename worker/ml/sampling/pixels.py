"""From the autoencoder's range to bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3], clamped and rounded as diffusers does."""
    unit = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    rounded: NDArray[np.uint8] = (unit * 255).round().astype(np.uint8)
    return rounded
