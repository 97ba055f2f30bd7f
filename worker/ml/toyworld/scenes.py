"""Scenes: one or two sprites on a place, sometimes tinted, sometimes in a style; drawn as float32 [S, S, 3]
in [0, 1].

A `Scene` says everything; `draw` only executes it, at any side in pixels. What a scene may hold depends on
the `Curriculum`: training begins with few words, centred and unmirrored, and widens (toyworld.md, "Order of
learning").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from worker.ml.toyworld.places import Array, Rng, draw_place
from worker.ml.toyworld.sprites import SpriteKey
from worker.ml.toyworld.styles import in_style
from worker.ml.toyworld.tints import tinted
from worker.ml.toyworld.world import (
    COLOURS,
    DRAWN_NOUNS,
    HELD_OUT,
    NOUNS,
    PLACES,
    SIZES,
    STYLES,
    held_out_combination,
)

Size = Literal["normal", "large", "small"]
LEVELS_PX = (256, 128, 64, 32)


@dataclass(frozen=True)
class Placed:
    """One sprite: ``side``, ``x`` and ``y`` (its centre) are shares of the picture's side; ``turn`` in
    degrees.
    """

    key: SpriteKey
    colour: str | None
    side: float
    x: float
    y: float
    mirror: bool = False
    turn: float = 0.0


@dataclass(frozen=True)
class Scene:
    """``ground_seed`` seeds the jitter of the place; ``light`` multiplies the picture (1 is as drawn)."""

    objects: tuple[Placed, ...]
    place: str
    style: str
    size: Size
    ground_seed: int
    light: float = 1.0


@dataclass(frozen=True)
class Curriculum:
    """What scenes may hold. Shares are probabilities."""

    nouns: int = len(NOUNS)
    designers: int = 6
    jitter: float = 1.0
    mirror: float = 0.5
    pairs: float = 0.36
    tints: float = 0.28
    plain: float = 0.25
    sizes: float = 0.22
    styles: float = 0.14


FIRST = Curriculum(
    nouns=16,
    designers=4,
    jitter=0.25,
    mirror=0.0,
    pairs=0.12,
    tints=0.12,
    plain=0.3,
    sizes=0.0,
    styles=0.0,
)
SECOND = Curriculum(
    nouns=16,
    designers=5,
    jitter=0.45,
    mirror=0.0,
    pairs=0.28,
    tints=0.18,
    sizes=0.12,
    styles=0.04,
)
THIRD = Curriculum(
    nouns=len(DRAWN_NOUNS),
    designers=5,
    jitter=0.45,
    mirror=0.0,
    pairs=0.34,
    tints=0.38,
    sizes=0.14,
    styles=0.06,
)
WHOLE = Curriculum()


@dataclass
class SpriteBank:
    """Sprites by key, as premultiplied pictures at several sides, tinted on demand."""

    sprites: dict[SpriteKey, Array]
    _levels: dict[tuple[SpriteKey, str | None], dict[int, Image.Image]] = field(default_factory=dict)

    def trained(self, noun: str) -> list[SpriteKey]:
        """The individuals of a class that training may show, in the order of the designers."""
        withheld = {subject.key for subject in HELD_OUT}
        return [
            key
            for key in self.sprites
            if key.noun == noun and key not in withheld and key.designer != "openmoji"
        ]

    def picture(self, placed: Placed, side: int) -> Image.Image:
        """The sprite at ``side`` pixels: mode RGBa (premultiplied)."""
        known = self._levels.setdefault((placed.key, placed.colour), {})
        if not known:
            rgba = self.sprites[placed.key]
            if placed.colour is not None:
                rgba = tinted(rgba, COLOURS[placed.colour])
            largest = Image.fromarray(np.round(rgba * 255).astype(np.uint8), "RGBA").convert("RGBa")
            known[largest.width] = largest
            for px in LEVELS_PX:
                if px < largest.width:
                    known[px] = largest.resize((px, px), Image.Resampling.BOX)
        level = next((px for px in sorted(known) if px >= side), max(known))
        image = known[level]
        if placed.mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if placed.turn:
            image = image.rotate(placed.turn, Image.Resampling.BILINEAR)
        return image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=None)


def sample_scene(bank: SpriteBank, rng: Rng, stage: Curriculum = WHOLE) -> Scene:
    """A scene of the training distribution: never a held-out subject, never a held-out combination."""
    while True:
        scene = _proposal(bank, rng, stage)
        if not any(held_out_combination(o.key.noun, o.colour, scene.place) for o in scene.objects):
            return scene


def _proposal(bank: SpriteBank, rng: Rng, stage: Curriculum) -> Scene:
    pair = rng.random() < stage.pairs
    size: Size = "normal"
    if not pair and rng.random() < stage.sizes:
        size = "large" if rng.random() < 0.5 else "small"
    nouns = rng.choice(stage.nouns, 2, replace=bool(rng.random() < 0.12))
    objects = tuple(
        _placed(bank, NOUNS[int(noun)], rng, stage, size=size, slot=slot)
        for slot, noun in enumerate(nouns[: 2 if pair else 1], start=1 if pair else 0)
    )
    if pair and objects[0].key == objects[1].key:
        return _proposal(bank, rng, stage)
    colours = [colour for colour in COLOURS if colour not in {placed.colour for placed in objects}]
    place = str(rng.choice(colours if rng.random() < stage.plain else list(PLACES)))
    style = str(rng.choice(list(STYLES)[1:])) if rng.random() < stage.styles else "photo"
    return Scene(objects, place, style, size, int(rng.integers(2**31)))


def _placed(bank: SpriteBank, noun: str, rng: Rng, stage: Curriculum, *, size: Size, slot: int) -> Placed:
    """``slot`` 0: alone in the middle; 1: left; 2: right."""
    keys = bank.trained(noun)[: stage.designers]
    key = keys[int(rng.integers(len(keys)))]
    colour = str(rng.choice(list(COLOURS))) if rng.random() < stage.tints else None
    low, high = SIZES[size] if slot == 0 else (0.38, 0.48)
    middle, reach = (low + high) / 2, (high - low) / 2
    side = middle + reach * (rng.uniform(-1, 1) * max(stage.jitter, 0.3))
    dx, dy = rng.uniform(-1, 1, 2) * stage.jitter
    freedom = {"normal": 0.14, "large": 0.12, "small": 0.34}[size] if slot == 0 else 0.04
    x = (0.5, 0.26, 0.74)[slot] + dx * freedom
    y = (0.56 if size != "large" else 0.5) + dy * (freedom * 0.7 if slot == 0 else 0.10)
    turn = float(rng.normal(0, 5)) * stage.jitter if rng.random() < 0.4 else 0.0
    return Placed(key, colour, side, x, y, bool(rng.random() < stage.mirror), turn)


def draw(scene: Scene, bank: SpriteBank, side: int) -> Array:
    """The picture, float32 [side, side, 3] in [0, 1]. The same scene looks the same at every side."""
    picture = draw_place(scene.place, side, np.random.default_rng(scene.ground_seed))
    for placed in scene.objects:
        _paste(picture, bank, placed, side)
    picture = np.clip(picture * scene.light, 0, 1)
    return in_style(picture, scene.style, np.random.default_rng(scene.ground_seed + 1))


def _paste(picture: Array, bank: SpriteBank, placed: Placed, side: int) -> None:
    px = max(2, round(placed.side * side))
    left, top = round(placed.x * side - px / 2), round(placed.y * side - px / 2)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + px, side), min(top + px, side)
    if x1 <= x0 or y1 <= y0:
        return
    sprite = (
        np.asarray(bank.picture(placed, px), np.float32)[y0 - top : y1 - top, x0 - left : x1 - left] / 255
    )
    picture[y0:y1, x0:x1] = sprite[..., :3] + picture[y0:y1, x0:x1] * (1 - sprite[..., 3:])
