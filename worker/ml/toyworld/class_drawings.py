"""More drawings of the world's own classes, for the image-text judge alone: further poses and faces of the six
designers, further designers, and symbols that are filled in like a child fills in a colouring book.

A judge that has seen six dogs knows six drawings; one that has seen thirty in any colour and any bend knows what a
dog looks like, and so can read a drawing that nobody showed it. That is what prompt similarity of a held-out subject
asks of it. No drawing of a held-out subject's class by the subject's own designer is among these.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from worker.ml.toyworld.places import Array, Rng
from worker.ml.toyworld.scenes import Placed, SpriteBank
from worker.ml.toyworld.sprites import DESIGNERS, SpriteKey, render, resized, svg_named
from worker.ml.toyworld.world import HELD_OUT

DRAWING_PX = 96
DRAWN_BY: tuple[str, ...] = (*DESIGNERS, "fxemoji", "streamline-emojis", "icon-park")
"""Sets in colour."""

IN_COLOUR: dict[str, tuple[str, ...]] = {
    "dog": ("dog", "dog-face", "guide-dog", "service-dog", "poodle", "dog-zodiac"),
    "cat": ("cat", "cat-face", "black-cat", "grinning-cat", "grinning-cat-face", "pouting-cat", "weary-cat-face"),
    "teapot": ("teapot", "kettle", "kettle-one"),
    "backpack": ("backpack", "school-backpack"),
    "elephant": ("elephant",),
    "owl": ("owl",),
    "umbrella": (
        "umbrella", "umbrella-with-rain-drops", "umbrella-on-ground", "closed-umbrella", "umbrella-one",
        "umbrella-two",
    ),
    "butterfly": ("butterfly", "monarch-butterfly"),
    "guitar": ("guitar",),
    "turtle": ("turtle",),
    "apple": ("green-apple", "apple-one"),
    "fox": ("fox", "fox-face", "fox-face-1", "fox-face-2"),
    "horse": ("horse", "horse-face", "carousel-horse", "horse-zodiac"),
    "rabbit": ("rabbit", "bunny", "rabbit-face", "rabbit-zodiac"),
    "penguin": ("penguin", "penguin-1", "penguin-2"),
    "duck": ("duck",),
    "tulip": ("tulip",),
    "rocket": ("rocket", "rocket-one"),
    "mushroom": ("mushroom", "brown-mushroom"),
    "car": (
        "automobile", "oncoming-automobile", "taxi", "oncoming-taxi", "sport-utility-vehicle", "police-car", "car",
        "racing-car",
    ),
    "house": ("house", "house-with-garden", "derelict-house", "home", "home-two"),
    "clock": ("alarm-clock", "mantelpiece-clock", "timer-clock", "big-clock"),
    "octopus": ("octopus",),
    "teddy bear": ("teddy-bear", "bear"),
}  # fmt: skip
"""Noun -> icon names, tried in every set of `DRAWN_BY`."""

SYMBOLS: dict[str, dict[str, tuple[str, ...]]] = {
    "fluent-emoji-high-contrast": {
        noun: names for noun, names in IN_COLOUR.items() if noun not in ("teddy bear",)
    },
    "mdi": {
        "dog": ("dog", "dog-side"),
        "cat": ("cat",),
        "teapot": ("kettle", "tea-kettle"),
        "backpack": ("backpack", "bag-personal"),
        "elephant": ("elephant",),
        "owl": ("owl",),
        "umbrella": ("umbrella", "umbrella-closed", "umbrella-outline"),
        "butterfly": ("butterfly", "butterfly-outline"),
        "guitar": ("guitar-acoustic", "guitar-electric"),
        "turtle": ("turtle", "tortoise"),
        "apple": ("food-apple", "food-apple-outline"),
        "horse": ("horse", "horse-variant"),
        "rabbit": ("rabbit", "rabbit-variant"),
        "penguin": ("penguin",),
        "duck": ("duck",),
        "tulip": ("flower-tulip",),
        "rocket": ("rocket", "rocket-launch"),
        "mushroom": ("mushroom", "mushroom-outline"),
        "car": ("car", "car-side", "car-hatchback", "car-convertible"),
        "house": ("home", "home-outline", "home-variant"),
        "clock": ("alarm", "clock"),
        "teddy bear": ("teddy-bear",),
    },
    "ph": {
        "dog": ("dog-fill", "dog"),
        "cat": ("cat-fill", "cat"),
        "backpack": ("backpack-fill", "backpack"),
        "umbrella": ("umbrella-fill", "umbrella", "umbrella-simple"),
        "butterfly": ("butterfly-fill", "butterfly"),
        "guitar": ("guitar-fill", "guitar"),
        "horse": ("horse-fill", "horse"),
        "rabbit": ("rabbit-fill", "rabbit"),
        "tulip": ("flower-tulip-fill", "flower-tulip"),
        "rocket": ("rocket-fill", "rocket-launch"),
        "car": ("car-fill", "car-profile", "car-simple"),
        "house": ("house-fill", "house-line", "house-simple"),
        "clock": ("clock-fill", "alarm"),
    },
    "tabler": {
        "dog": ("dog",),
        "cat": ("cat",),
        "teapot": ("teapot",),
        "backpack": ("backpack",),
        "umbrella": ("umbrella", "umbrella-filled"),
        "butterfly": ("butterfly", "butterfly-filled"),
        "apple": ("apple", "apple-filled"),
        "horse": ("horse", "horse-toy"),
        "mushroom": ("mushroom", "mushroom-filled"),
        "rocket": ("rocket",),
        "car": ("car", "car-filled"),
        "house": ("home", "building-cottage"),
    },
    "fa6-solid": {
        "dog": ("dog",),
        "cat": ("cat",),
        "umbrella": ("umbrella",),
        "guitar": ("guitar",),
        "apple": ("apple-whole",),
        "horse": ("horse", "horse-head"),
        "rocket": ("rocket",),
        "car": ("car", "car-side"),
        "house": ("house", "house-chimney"),
        "clock": ("clock",),
    },
    "game-icons": {
        "dog": ("sitting-dog", "jumping-dog", "sniffing-dog", "balloon-dog"),
        "cat": ("cat", "hollow-cat"),
        "teapot": ("teapot",),
        "backpack": ("backpack", "light-backpack", "knapsack"),
        "elephant": ("elephant", "elephant-head"),
        "owl": ("owl", "barn-owl"),
        "umbrella": ("umbrella",),
        "butterfly": ("butterfly",),
        "guitar": ("guitar",),
        "turtle": ("turtle", "sea-turtle", "tortoise"),
        "apple": ("shiny-apple",),
        "fox": ("fox", "fox-head"),
        "horse": ("horse-head",),
        "rabbit": ("rabbit", "rabbit-head"),
        "penguin": ("penguin",),
        "duck": ("duck", "plastic-duck"),
        "rocket": ("rocket",),
        "mushroom": ("mushroom", "super-mushroom", "spotted-mushroom", "mushrooms"),
        "car": ("city-car", "race-car", "police-car"),
        "house": ("house", "family-house"),
        "clock": ("alarm-clock",),
        "octopus": ("octopus",),
    },
    "lucide": {
        "dog": ("dog",),
        "cat": ("cat",),
        "backpack": ("backpack",),
        "umbrella": ("umbrella",),
        "guitar": ("guitar",),
        "turtle": ("turtle",),
        "apple": ("apple",),
        "rabbit": ("rabbit",),
        "rocket": ("rocket",),
        "car": ("car", "car-front"),
        "house": ("house",),
        "clock": ("alarm-clock",),
    },
}  # fmt: skip
"""Set of one colour -> noun -> icon names."""

ICON_SETS: tuple[str, ...] = tuple(dict.fromkeys((*DRAWN_BY, *SYMBOLS)))
COLOURINGS = (((0.16, 0.13, 0.15), (0.86, 0.52, 0.36)), ((0.72, 0.36, 0.30), (0.98, 0.92, 0.86)))
"""(ink, paper) of a symbol, sRGB in [0, 1]; `VariedBank` turns the hue of both."""


def filled_in(rgba: Array, ink: tuple[float, float, float], paper: tuple[float, float, float]) -> Array:
    """A symbol [S, S, 4] as a drawing: its strokes in ``ink``, what they enclose in ``paper``."""
    side = len(rgba)
    strokes = rgba[..., 3]
    outside = np.zeros((side + 2, side + 2), bool)
    free = np.pad(strokes < 0.35, 1, constant_values=True)
    queue = deque([(0, 0)])
    outside[0, 0] = True
    while queue:
        y, x = queue.popleft()
        for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if 0 <= v < side + 2 and 0 <= u < side + 2 and free[v, u] and not outside[v, u]:
                outside[v, u] = True
                queue.append((v, u))
    inside = ~outside[1:-1, 1:-1]
    cover = np.where(inside, np.float32(1), strokes)
    stroke = strokes[..., None]
    inked, blank = np.array(ink, np.float32), np.array(paper, np.float32)
    colour = np.where(inside[..., None], stroke * inked + (1 - stroke) * blank, inked)
    return np.concatenate([colour, cover[..., None]], -1).astype(np.float32)


def _icons(icons: Path, name: str) -> dict[str, Any]:
    path = icons / "node_modules" / "@iconify-json" / name / "icons.json"
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def listed(icons: Path) -> Iterator[tuple[SpriteKey, str]]:
    """Key and SVG text of every drawing of the tables above that a set holds, each picture once; the designer of a
    key is "set:icon".
    """
    withheld = {(subject.key.designer, subject.noun) for subject in HELD_OUT}
    seen: set[str] = set()
    for name in ICON_SETS:
        data = _icons(icons, name)
        for noun, wanted in SYMBOLS.get(name, IN_COLOUR).items():
            for icon in wanted if (name, noun) not in withheld else ():
                svg = svg_named(data, icon)
                if svg is not None and svg not in seen:
                    seen.add(svg)
                    yield SpriteKey(noun, f"{name}:{icon}"), svg


def class_drawings(icons: Path) -> dict[SpriteKey, Array]:
    """The listed drawings at `DRAWING_PX`, symbols once in each of `COLOURINGS` (the designer of their keys is
    "set:icon:number"). Needs the extra ``base-model``.
    """
    drawings: dict[SpriteKey, Array] = {}
    for key, svg in listed(icons):
        drawing = resized(render(svg.replace("currentColor", "#000")), DRAWING_PX)
        if key.designer.partition(":")[0] in SYMBOLS:
            for number, (ink, paper) in enumerate(COLOURINGS):
                drawings[SpriteKey(key.noun, f"{key.designer}:{number}")] = filled_in(drawing, ink, paper)
        else:
            drawings[key] = drawing
    return drawings


def hue_turn(angle: float, saturation: float) -> Array:
    """[3, 3] on rows of RGB: turns the hue by ``angle`` (radians) about the grey axis, keeping luminance's mean, and
    scales the saturation.
    """
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = saturation * (np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * cross)
    rows: Array = (grey + turn).T.astype(np.float32)
    return rows


@dataclass
class VariedBank(SpriteBank):
    """A bank whose every drawing comes out bent a little, and in any hue where the caption names no colour.

    ``sprites`` are the world's own, ``more`` the further drawings; the world's own come up in ``own_share`` of the
    draws, so that what the base model was taught stays known best.
    """

    more: dict[SpriteKey, Array] = field(default_factory=dict)
    rng: Rng = field(default_factory=lambda: np.random.default_rng(12))
    bend: float = 0.07
    own_share: float = 0.5

    def __post_init__(self) -> None:
        self._further: dict[str, list[SpriteKey]] = {}
        for key in self.more:
            self._further.setdefault(key.noun, []).append(key)
        learnt = super().trained
        self._own = {noun: learnt(noun) for noun in dict.fromkeys(key.noun for key in self.sprites)}
        self.sprites = {**self.sprites, **self.more}

    def trained(self, noun: str) -> list[SpriteKey]:
        """Either the world's own individuals of a class or the further ones, by lot."""
        further = self._further.get(noun)
        return further if further and self.rng.random() >= self.own_share else self._own[noun]

    def picture(self, placed: Placed, side: int) -> Image.Image:
        """The sprite at ``side`` pixels, mode RGBa, another one each time."""
        image = super().picture(placed, side)
        if side >= 8 and self.rng.random() < 0.75:
            image = self._bent(image, side)
        if placed.colour is None and self.rng.random() < 0.45:
            image = self._recoloured(image)
        return image

    def _bent(self, image: Image.Image, side: int) -> Image.Image:
        """Through a grid of nine points moved at random: a shear, a squeeze and a bend at once."""
        at = np.linspace(0, side, 3)
        grid = np.stack(np.meshgrid(at, at, indexing="xy"), -1)
        whole = self.rng.normal(0, self.bend, (2, 2)) + np.eye(2)
        middle = side / 2
        grid = (grid - middle) @ whole.T + middle + self.rng.normal(0, self.bend * side, grid.shape) * 0.6
        mesh = []
        for row in range(2):
            for column in range(2):
                box = tuple(round(v) for v in (at[column], at[row], at[column + 1], at[row + 1]))
                corners = (
                    grid[row, column],
                    grid[row + 1, column],
                    grid[row + 1, column + 1],
                    grid[row, column + 1],
                )
                mesh.append((box, tuple(float(v) for corner in corners for v in corner)))
        return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)

    def _recoloured(self, image: Image.Image) -> Image.Image:
        array = np.asarray(image, np.float32)
        turn = hue_turn(float(self.rng.uniform(0, 2 * np.pi)), float(self.rng.uniform(0.4, 1.3)))
        colour = np.clip(array[..., :3] @ turn, 0, array[..., 3:])
        rgba = np.concatenate([colour, array[..., 3:]], -1).round().astype(np.uint8)
        return Image.frombytes("RGBa", image.size, rgba.tobytes())
