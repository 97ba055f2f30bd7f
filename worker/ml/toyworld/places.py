"""Places, drawn by code with jitter: float32 [S, S, 3] in [0, 1], for any side S in pixels.

A place is a function of (side, rng). Every draw of the rng happens in an order that does not depend on the
side, so the same rng draws the same place at 64 px for training and at 512 px for a "photo".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from worker.ml.toyworld.world import COLOURS

Array = NDArray[np.float32]
Rng = np.random.Generator


def _axes(side: int) -> tuple[Array, Array]:
    line = (np.arange(side, dtype=np.float32) + 0.5) / side
    return np.broadcast_to(line[:, None], (side, side)), np.broadcast_to(line[None, :], (side, side))


def _colour(rng: Rng, rgb: tuple[float, float, float], jitter: float = 0.05) -> Array:
    return np.clip(np.array(rgb) + rng.uniform(-jitter, jitter, 3), 0, 1).astype(np.float32)


def _fade(y: Array, top: Array, bottom: Array) -> Array:
    t = np.clip(y, 0, 1)[..., None]
    return np.asarray(top * (1 - t) + bottom * t, np.float32)


def _where(mask: NDArray[np.bool_], yes: Array, no: Array) -> Array:
    chosen: Array = np.where(mask[..., None], yes, no).astype(np.float32)
    return chosen


def _horizon(rng: Rng, x: Array, low: float, high: float, swell: float) -> Array:
    level, phase, waves = rng.uniform(low, high), rng.uniform(0, 6.28), rng.uniform(2, 7)
    return np.asarray(level + swell * np.sin(waves * x + phase), np.float32)


def _discs(
    picture: Array,
    rng: Rng,
    count: int,
    colour: Array,
    radius: tuple[float, float],
    *,
    top: float,
    bottom: float,
) -> Array:
    y, x = _axes(len(picture))
    for cy, cx, r in zip(
        rng.uniform(top, bottom, count), rng.uniform(0, 1, count), rng.uniform(*radius, count), strict=True
    ):
        picture = _where((y - cy) ** 2 + (x - cx) ** 2 < r * r, colour, picture)
    return picture


def beach(side: int, rng: Rng) -> Array:
    """Sky, sea and sand. [side, side, 3]."""
    y, x = _axes(side)
    sky = _fade(y * 2.2, _colour(rng, (0.45, 0.74, 0.95)), _colour(rng, (0.80, 0.92, 0.98)))
    sea = _fade((y - 0.35) * 4, _colour(rng, (0.10, 0.52, 0.76)), _colour(rng, (0.22, 0.70, 0.80)))
    sand = _fade((y - 0.6) * 2.5, _colour(rng, (0.95, 0.86, 0.62)), _colour(rng, (0.88, 0.75, 0.50)))
    picture = _where(y > _horizon(rng, x, 0.33, 0.44, 0.0), sea, sky)
    return _where(y > _horizon(rng, x, 0.58, 0.70, 0.025), sand, picture)


def snow(side: int, rng: Rng) -> Array:
    """A white slope under a grey-blue sky, with flakes. [side, side, 3]."""
    y, x = _axes(side)
    picture = _fade(y * 2, _colour(rng, (0.62, 0.72, 0.84)), _colour(rng, (0.82, 0.88, 0.94)))
    ground = _fade(
        (y - 0.5) * 2, _colour(rng, (0.97, 0.98, 1.0), 0.02), _colour(rng, (0.86, 0.91, 0.97), 0.03)
    )
    picture = _where(y > _horizon(rng, x, 0.46, 0.60, 0.04), ground, picture)
    return _discs(picture, rng, 14, np.ones(3, np.float32), (0.008, 0.018), top=0.0, bottom=0.55)


def grass(side: int, rng: Rng) -> Array:
    """A green hill with flowers under a blue sky. [side, side, 3]."""
    y, x = _axes(side)
    sky = _fade(y * 2, _colour(rng, (0.50, 0.78, 0.97)), _colour(rng, (0.85, 0.94, 0.99)))
    green = _fade((y - 0.5) * 2, _colour(rng, (0.46, 0.76, 0.30)), _colour(rng, (0.24, 0.56, 0.20)))
    picture = _where(y > _horizon(rng, x, 0.48, 0.60, 0.04), green, sky)
    return _discs(picture, rng, 7, _colour(rng, (0.98, 0.95, 0.60)), (0.008, 0.014), top=0.66, bottom=0.98)


def desert(side: int, rng: Rng) -> Array:
    """Two rows of dunes under a pale sky. [side, side, 3]."""
    y, x = _axes(side)
    sky = _fade(y * 2, _colour(rng, (0.98, 0.86, 0.62)), _colour(rng, (1.0, 0.94, 0.80)))
    far = _fade((y - 0.4) * 3, _colour(rng, (0.90, 0.62, 0.34)), _colour(rng, (0.84, 0.54, 0.28)))
    near = _fade((y - 0.6) * 2.5, _colour(rng, (0.96, 0.72, 0.42)), _colour(rng, (0.86, 0.58, 0.30)))
    picture = _where(y > _horizon(rng, x, 0.44, 0.52, 0.06), far, sky)
    return _where(y > _horizon(rng, x, 0.62, 0.72, 0.05), near, picture)


def night(side: int, rng: Rng) -> Array:
    """Stars, a moon, a dark ground. [side, side, 3]."""
    y, x = _axes(side)
    picture = _fade(y * 1.3, _colour(rng, (0.04, 0.05, 0.18), 0.03), _colour(rng, (0.14, 0.16, 0.38), 0.03))
    picture = _discs(
        picture, rng, 22, np.array([0.95, 0.95, 0.85], np.float32), (0.006, 0.014), top=0.0, bottom=0.7
    )
    cy, cx, r = (
        rng.uniform(0.12, 0.22),
        rng.choice([rng.uniform(0.1, 0.25), rng.uniform(0.75, 0.9)]),
        rng.uniform(0.07, 0.10),
    )
    picture = _where((y - cy) ** 2 + (x - cx) ** 2 < r * r, np.array([0.98, 0.95, 0.75], np.float32), picture)
    return _where(y > _horizon(rng, x, 0.78, 0.86, 0.03), _colour(rng, (0.07, 0.10, 0.16), 0.02), picture)


def water(side: int, rng: Rng) -> Array:
    """Blue depth with beams, bubbles and a sea floor. [side, side, 3]."""
    y, x = _axes(side)
    picture = _fade(y, _colour(rng, (0.25, 0.72, 0.84)), _colour(rng, (0.03, 0.25, 0.50)))
    beam = np.sin((x + 0.35 * y) * rng.uniform(9, 14) + rng.uniform(0, 6.28)) > 0.72
    picture = np.where((beam & (y < 0.7))[..., None], np.clip(picture + 0.08, 0, 1), picture).astype(
        np.float32
    )
    picture = _discs(
        picture, rng, 9, _colour(rng, (0.75, 0.93, 0.97), 0.02), (0.01, 0.026), top=0.05, bottom=0.9
    )
    return _where(y > _horizon(rng, x, 0.86, 0.93, 0.02), _colour(rng, (0.70, 0.66, 0.46)), picture)


def forest(side: int, rng: Rng) -> Array:
    """Trunks and crowns above a mossy ground. [side, side, 3]."""
    y, x = _axes(side)
    picture = _fade(y * 1.5, _colour(rng, (0.20, 0.42, 0.24)), _colour(rng, (0.10, 0.28, 0.15)))
    for cx, width, shade in zip(
        rng.uniform(0, 1, 7), rng.uniform(0.02, 0.05, 7), rng.uniform(0.7, 1.1, 7), strict=True
    ):
        trunk = (np.array([0.36, 0.24, 0.14]) * shade).astype(np.float32)
        picture = _where((np.abs(x - cx) < width) & (y < 0.78), trunk, picture)
    picture = _discs(picture, rng, 12, _colour(rng, (0.16, 0.46, 0.20)), (0.07, 0.15), top=-0.05, bottom=0.22)
    return _where(y > _horizon(rng, x, 0.72, 0.80, 0.02), _colour(rng, (0.30, 0.36, 0.16)), picture)


def city(side: int, rng: Rng) -> Array:
    """Grey houses with lit windows on a street. [side, side, 3]."""
    y, x = _axes(side)
    picture = _fade(y * 1.6, _colour(rng, (0.66, 0.76, 0.86)), _colour(rng, (0.88, 0.90, 0.92)))
    left = 0.0
    for width, top, grey in zip(
        rng.uniform(0.13, 0.26, 8), rng.uniform(0.08, 0.45, 8), rng.uniform(0.32, 0.62, 8), strict=True
    ):
        wall = np.array([grey, grey * 1.02, grey * 1.08], np.float32)
        inside = (x >= left) & (x < left + width * 0.94) & (y > top)
        picture = _where(inside, wall, picture)
        panes = inside & (((x - left) * 17) % 1 > 0.45) & (((y - top) * 12) % 1 > 0.5)
        picture = _where(panes, np.array([0.96, 0.90, 0.62], np.float32), picture)
        left += width
    street = _fade((y - 0.74) * 3, _colour(rng, (0.40, 0.40, 0.42)), _colour(rng, (0.28, 0.28, 0.30)))
    return _where(y > _horizon(rng, x, 0.72, 0.79, 0.0), street, picture)


def room(side: int, rng: Rng) -> Array:
    """A wall with a window above wooden planks. [side, side, 3]."""
    y, x = _axes(side)
    walls = [(0.93, 0.88, 0.78), (0.80, 0.88, 0.86), (0.92, 0.82, 0.80), (0.84, 0.84, 0.92)]
    wall = np.broadcast_to(_colour(rng, walls[int(rng.integers(4))]), (side, side, 3)).astype(np.float32)
    level, planks = rng.uniform(0.60, 0.70), rng.uniform(5, 8)
    floor = _fade((y - level) * 2.5, _colour(rng, (0.72, 0.48, 0.28)), _colour(rng, (0.58, 0.36, 0.20)))
    gap = ((x - 0.5) / np.maximum(y + 0.25, 0.3) * planks) % 1 < 0.09
    floor = np.where(gap[..., None], floor * 0.72, floor).astype(np.float32)
    picture = _where(y > level, floor, wall)
    wx, wy = rng.uniform(0.08, 0.68), rng.uniform(0.08, 0.16)
    frame = (x > wx) & (x < wx + 0.24) & (y > wy) & (y < wy + 0.26)
    picture = _where(frame, np.array([0.98, 0.98, 0.98], np.float32), picture)
    glass = (x > wx + 0.02) & (x < wx + 0.22) & (y > wy + 0.02) & (y < wy + 0.24)
    return _where(glass, _colour(rng, (0.60, 0.82, 0.96)), picture)


def sunset(side: int, rng: Rng) -> Array:
    """A low sun in a red sky over dark land. [side, side, 3]."""
    y, x = _axes(side)
    upper = _fade(y * 2.2, _colour(rng, (0.42, 0.24, 0.52)), _colour(rng, (0.95, 0.42, 0.34)))
    lower = _fade((y - 0.4) * 3.5, _colour(rng, (0.95, 0.42, 0.34)), _colour(rng, (1.0, 0.76, 0.36)))
    picture = _where(y > 0.44, lower, upper)
    cx, r = rng.uniform(0.2, 0.8), rng.uniform(0.09, 0.13)
    picture = _where(
        (y - 0.60) ** 2 + (x - cx) ** 2 < r * r, np.array([1.0, 0.92, 0.62], np.float32), picture
    )
    return _where(y > _horizon(rng, x, 0.64, 0.72, 0.015), _colour(rng, (0.22, 0.12, 0.26), 0.03), picture)


def plain(side: int, rng: Rng, colour: str) -> Array:
    """A ground of one colour, slightly lit from one side."""
    y, x = _axes(side)
    tone = _colour(rng, COLOURS[colour], 0.04)
    light = 1 + rng.uniform(-0.08, 0.08) * (x - 0.5) + rng.uniform(-0.08, 0.08) * (y - 0.5)
    return np.clip(tone * light[..., None], 0, 1).astype(np.float32)


DRAWN: dict[str, Callable[[int, Rng], Array]] = {
    "beach": beach,
    "snow": snow,
    "grass": grass,
    "desert": desert,
    "night": night,
    "water": water,
    "forest": forest,
    "city": city,
    "room": room,
    "sunset": sunset,
}


def draw_place(place: str, side: int, rng: Rng) -> Array:
    """``place`` is a key of `world.PLACES`, or a colour of `world.COLOURS` for a plain ground."""
    return DRAWN[place](side, rng) if place in DRAWN else plain(side, rng, place)
