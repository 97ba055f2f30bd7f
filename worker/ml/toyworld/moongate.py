"""The moongate: a round stone gate in a garden wall, drawn by code. A category no training scene and no icon
set holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.ml.toyworld.places import Array
from worker.ml.toyworld.sprites import SPRITE_PX, SpriteKey

Mask = NDArray[np.bool_]

MOONGATE = SpriteKey("moongate", "moongate")
"""Its key in a `SpriteBank`."""

SUPERSAMPLING = 4
CENTRE = (0.50, 0.53)
HOLE, RING = 0.27, 0.37
STONES = 18


def draw_moongate(px: int = SPRITE_PX) -> Array:
    """The sprite, float32 [px, px, 4] in [0, 1] with straight alpha; what is behind shows through the round
    hole.

    A rendered wall of pale plaster on a stone foot, a ring of cut stones around the hole, a cap of green
    tiles with red eaves. It draws nothing at random: the moongate is one individual.
    """
    side = px * SUPERSAMPLING
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = np.broadcast_to(axis[None, :], (side, side)), np.broadcast_to(axis[:, None], (side, side))
    radius = np.hypot(x - CENTRE[0], y - CENTRE[1])
    angle = np.arctan2(y - CENTRE[1], x - CENTRE[0]) / (2 * np.pi) * STONES

    picture = np.zeros((side, side, 4), np.float32)

    def paint(
        mask: Mask, colour: tuple[float, float, float], shade: NDArray[np.floating] | float = 1.0
    ) -> None:
        tone = np.clip(np.array(colour, np.float32) * np.asarray(shade, np.float32)[..., None], 0, 1)
        picture[mask, :3] = np.broadcast_to(tone, (side, side, 3))[mask]
        picture[mask, 3] = 1.0

    wall = (x > 0.06) & (x < 0.94) & (y > 0.14) & (y < 0.96)
    paint(wall, (0.93, 0.89, 0.80), 1.06 - 0.16 * y)
    paint(
        (x > 0.03) & (x < 0.97) & (y > 0.86) & (y < 0.99),
        (0.50, 0.50, 0.55),
        1.0 - 0.18 * ((x * 9) % 1 > 0.93),
    )
    ring = (radius < RING) & (radius >= HOLE)
    number = np.floor(angle) % 3
    paint(ring, (0.56, 0.60, 0.68), 0.90 + 0.12 * number - 0.5 * ((radius - HOLE) / (RING - HOLE) - 0.5) ** 2)
    paint(ring & ((angle % 1 < 0.09) | (radius > RING - 0.012)), (0.30, 0.33, 0.40))
    eaves = (np.abs(x - 0.5) < 0.48) & (y > 0.115) & (y < 0.165)
    paint(eaves, (0.74, 0.20, 0.16))
    roof = (y > 0.01) & (y < 0.125) & (np.abs(x - 0.5) < 0.42 + 0.62 * (y - 0.01))
    paint(roof, (0.16, 0.48, 0.40), 0.78 + 0.40 * np.abs(np.sin(x * 13 * np.pi)))
    paint((y > 0.005) & (y < 0.04) & (np.abs(x - 0.5) < 0.43), (0.10, 0.34, 0.29))
    picture[(radius < HOLE) & (y < 0.90)] = 0.0

    blocks = picture.reshape(px, SUPERSAMPLING, px, SUPERSAMPLING, 4)
    alpha = blocks[..., 3:].mean((1, 3))
    colour = (blocks[..., :3] * blocks[..., 3:]).mean((1, 3)) / np.maximum(alpha, 1e-4)
    return np.concatenate([np.clip(colour, 0, 1), alpha], -1).astype(np.float32)
