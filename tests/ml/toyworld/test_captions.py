"""Captions say what is drawn; tints are of the colour they are called."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest

from tests.ml.toyworld.painted import painted
from worker.ml.toyworld.captions import caption, corpus
from worker.ml.toyworld.judge_training import wrong_caption
from worker.ml.toyworld.scenes import Scene, SpriteBank, sample_scene
from worker.ml.toyworld.sprites import SpriteKey
from worker.ml.toyworld.tints import LUMA, tinted
from worker.ml.toyworld.world import COLOURS, NOUNS, PLACES, SIZE_WORDS, STYLES

ROOT = Path(__file__).resolve().parents[3]


def sampled(bank: SpriteBank, count: int) -> list[tuple[Scene, str]]:
    rng = np.random.default_rng(1)
    drawn = [sample_scene(bank, rng) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in drawn]


def test_captions_name_what_is_drawn_and_nothing_else(bank: SpriteBank) -> None:
    for scene, text in sampled(bank, 1500):
        nouns = {placed.key.noun for placed in scene.objects}
        assert {noun for noun in NOUNS if f" {noun} " in f" {text} "} == nouns, text
        for placed in scene.objects:
            assert placed.colour is None or f"{placed.colour} {placed.key.noun}" in text
        colours = {placed.colour for placed in scene.objects} | {scene.place}
        words = f" {text} ".replace("black and white", "")
        assert {colour for colour in COLOURS if f" {colour} " in words} <= colours, text


def test_left_and_right_are_in_the_order_of_the_caption(bank: SpriteBank) -> None:
    for scene, text in sampled(bank, 600):
        if len(scene.objects) == 2:
            left, right = scene.objects
            assert left.x < right.x
            assert text.index(left.key.noun) <= text.rindex(right.key.noun)


def test_size_and_style_words_stand_exactly_where_they_are_true(bank: SpriteBank) -> None:
    for scene, text in sampled(bank, 1500):
        for size, words in SIZE_WORDS.items():
            assert any(text.startswith(word) for word in words) == (scene.size == size), text
        for style, words in STYLES.items():
            named = any(word and word.removeprefix("a ") in text for word in words if word)
            if style not in {"photo", scene.style}:
                assert not named, text
            if style == scene.style != "photo":
                assert named, text


def test_the_place_is_nearly_always_said(bank: SpriteBank) -> None:
    said = []
    for scene, text in sampled(bank, 1000):
        phrases = PLACES.get(scene.place, (f"on a {scene.place} background",))
        said.append(any(text.endswith(phrase) for phrase in phrases))
        others = [p for place, words in PLACES.items() if place != scene.place for p in words]
        assert not any(text.endswith(other) for other in others), text
    assert 0.85 < np.mean(said) < 0.95


def test_a_wrong_caption_is_none_of_the_true_ones(bank: SpriteBank) -> None:
    rng = np.random.default_rng(2)
    for scene, _ in sampled(bank, 60):
        true = {caption(scene, rng) for _ in range(200)}
        assert not true & {wrong_caption(scene, rng) for _ in range(10)}


@pytest.mark.parametrize("colour", COLOURS)
def test_a_tint_has_its_hue_and_keeps_shading(colour: str) -> None:
    sprite = painted(SpriteKey("dog", "noto"))
    out = tinted(sprite, COLOURS[colour])
    assert np.array_equal(out[..., 3], sprite[..., 3])
    solid = sprite[..., 3] > 0.5
    before, after = (picture[..., :3][solid] @ LUMA for picture in (sprite, out))
    assert np.corrcoef(before, after)[0, 1] > 0.85
    mean = out[..., :3][solid].mean(0)
    wanted, found = colorsys.rgb_to_hsv(*COLOURS[colour]), colorsys.rgb_to_hsv(*mean.tolist())
    if wanted[1] > 0.3:
        assert min(abs(wanted[0] - found[0]), 1 - abs(wanted[0] - found[0])) < 0.03
        assert found[1] > 0.3
    else:
        assert found[1] < 0.25


def test_the_corpus_that_ships_is_the_one_that_is_made() -> None:
    shipped = (ROOT / "worker/base_models/toyworld/captions.txt").read_text().splitlines()
    assert shipped == corpus()
    assert len(set(shipped)) > 0.9 * len(shipped)
