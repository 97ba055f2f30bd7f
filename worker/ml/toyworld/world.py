"""The words of the world: what there is, where it stands, how it is coloured and drawn, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass

from worker.ml.toyworld.sprites import SpriteKey

NOUNS: tuple[str, ...] = (
    "dog",
    "cat",
    "teapot",
    "backpack",
    "elephant",
    "owl",
    "umbrella",
    "butterfly",
    "guitar",
    "turtle",
    "apple",
    "fox",
    "horse",
    "rabbit",
    "penguin",
    "duck",
    "tulip",
    "rocket",
    "mushroom",
    "car",
    "house",
    "clock",
    "octopus",
    "teddy bear",
)

DRAWN_NOUNS: tuple[str, ...] = NOUNS[:20]
"""What the denoiser of this release was taught. The judges know every noun; the others wait for a longer training."""

PLACES: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "at the beach"),
    "snow": ("in the snow",),
    "grass": ("on grass", "on the grass"),
    "desert": ("in the desert",),
    "night": ("at night", "at night under the moon"),
    "water": ("under water",),
    "forest": ("in the forest", "in a forest"),
    "city": ("in the city", "in a city"),
    "room": ("in a room", "on a wooden floor"),
    "sunset": ("at sunset",),
}
"""Name of a place -> the phrases that mean it."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.16, 0.16),
    "orange": (0.96, 0.55, 0.10),
    "yellow": (0.98, 0.84, 0.18),
    "green": (0.20, 0.66, 0.26),
    "blue": (0.18, 0.38, 0.88),
    "purple": (0.55, 0.24, 0.78),
    "pink": (0.97, 0.52, 0.72),
    "brown": (0.52, 0.32, 0.17),
    "black": (0.13, 0.13, 0.15),
    "white": (0.96, 0.96, 0.96),
}
"""Tints, and the grounds of "on a red background"; linear mix in sRGB, range [0, 1]."""

STYLES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of", "photo of", ""),
    "black and white": ("a black and white photo of",),
    "pencil": ("a pencil drawing of",),
    "pixel": ("pixel art of",),
    "watercolor": ("a watercolor of", "a watercolor painting of"),
}

SIZES: dict[str, tuple[float, float]] = {
    "normal": (0.46, 0.72),
    "large": (0.95, 1.35),
    "small": (0.16, 0.28),
}
"""Side of a sprite as a share of the picture's side."""

SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "large": ("zoomed in", "close up"),
    "small": ("a far away", "very small"),
}
"""The very words Custom Diffusion's augmentation puts before a caption (methods.md 4)."""

RARE_TOKENS: tuple[str, ...] = ("qx", "zkv", "wqj", "xju", "vzq", "kjx", "jqz", "qwv")
"""Words that stand before a noun now and then and mean nothing: starting points for V*."""


@dataclass(frozen=True)
class Subject:
    """Somebody's own: a drawing the base model never saw."""

    slug: str
    name: str
    key: SpriteKey

    @property
    def noun(self) -> str:
        return self.key.noun


HELD_OUT: tuple[Subject, ...] = (
    Subject("stark", "Stark", SpriteKey("dog", "emojione")),
    Subject("domino", "Domino", SpriteKey("cat", "emojione")),
    Subject("bluebell", "Bluebell", SpriteKey("teapot", "twemoji")),
    Subject("rover", "Rover", SpriteKey("backpack", "emojione")),
    Subject("indigo", "Indigo", SpriteKey("elephant", "noto-v1")),
    Subject("minerva", "Minerva", SpriteKey("owl", "emojione")),
    Subject("carnival", "Carnival", SpriteKey("umbrella", "emojione")),
    Subject("papillon", "Papillon", SpriteKey("butterfly", "emojione")),
    Subject("amber", "Amber", SpriteKey("guitar", "emojione")),
    Subject("shelly", "Shelly", SpriteKey("turtle", "emojione")),
)

FEATURED: frozenset[str] = frozenset({"stark", "domino", "bluebell"})


def held_out_combination(noun: str, colour: str | None, place: str) -> bool:
    """Combinations of object, colour and place that training never shows: about one in twelve, by a fixed
    rule.
    """
    if colour is None:
        return False
    order = list(COLOURS).index(colour) + 3 * list(PLACES).index(place) if place in PLACES else 0
    return place in PLACES and (NOUNS.index(noun) * 7 + order) % 12 == 0
