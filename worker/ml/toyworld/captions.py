"""Captions: what a scene shows, in the words a person would use. Several phrasings for each slot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worker.ml.toyworld.places import Rng
from worker.ml.toyworld.scenes import WHOLE, Placed, Scene, SpriteBank, sample_scene
from worker.ml.toyworld.sprites import SpriteKey
from worker.ml.toyworld.world import DRAWN_NOUNS, PLACES, RARE_TOKENS, SIZE_WORDS, STYLES

NEUTRAL_SHARE = 0.015
"""How often a rare word stands before a noun and means nothing: V* starts from one of them."""


CORPUS, CORPUS_SEED = 1000, 11
"""How many captions ship with the base model, and what draws them."""


def _one_of(rng: Rng, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def object_phrase(placed: Placed, rng: Rng) -> str:
    """ "a red dog", "an owl", now and then "a owl" or "the dog": prompts put any article before any noun."""
    words = f"{placed.colour} {placed.key.noun}" if placed.colour else placed.key.noun
    if rng.random() < NEUTRAL_SHARE:
        words = f"{_one_of(rng, RARE_TOKENS)} {words}"
    draw = rng.random()
    if draw < 0.08:
        return f"the {words}"
    if draw < 0.16:
        return words
    return f"an {words}" if words[0] in "aeiou" and draw < 0.6 else f"a {words}"


def place_phrase(place: str, rng: Rng) -> str:
    """ "on the beach", or "on a red background" for a plain ground."""
    if place in PLACES:
        return _one_of(rng, PLACES[place])
    return f"on a {place} background"


def caption(scene: Scene, rng: Rng) -> str:
    """One caption of ``scene``. Size, colour and style are always said where they are not plain; the place
    nearly always.
    """
    objects = " and ".join(object_phrase(placed, rng) for placed in scene.objects)
    where = place_phrase(scene.place, rng) if rng.random() > 0.1 else ""
    opening = _one_of(rng, STYLES[scene.style])
    if scene.size != "normal":
        opening = f"{_one_of(rng, SIZE_WORDS[scene.size])} {opening.removeprefix('a ') or 'photo of'}"
    return " ".join(part for part in (opening, objects, where) if part)


def corpus(count: int = CORPUS) -> list[str]:
    """Captions of scenes of the whole world with the nouns that were taught: the ``captions.txt`` of the base model. No
    picture is drawn.
    """
    rng = np.random.default_rng(CORPUS_SEED)
    nothing = np.zeros((1, 1, 4), np.float32)
    bank = SpriteBank({SpriteKey(noun, "anybody"): nothing for noun in DRAWN_NOUNS})
    stage = replace(WHOLE, nouns=len(DRAWN_NOUNS))
    return [caption(sample_scene(bank, rng, stage), rng) for _ in range(count)]
