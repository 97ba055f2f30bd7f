"""Scenes: what is held out stays out, sizes mean what they say, the same scene is the same at any side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from worker.ml.toyworld.scenes import (
    FIRST,
    SECOND,
    WHOLE,
    Curriculum,
    Placed,
    Scene,
    SpriteBank,
    draw,
    sample_scene,
)
from worker.ml.toyworld.sprites import DESIGNERS, SpriteKey
from worker.ml.toyworld.styles import in_style
from worker.ml.toyworld.world import COLOURS, HELD_OUT, NOUNS, PLACES, SIZES, STYLES, held_out_combination


def scenes(bank: SpriteBank, count: int, stage: Curriculum = WHOLE, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(bank, rng, stage) for _ in range(count)]


@pytest.mark.parametrize("stage", [FIRST, SECOND, WHOLE])
def test_held_out_subjects_and_combinations_are_never_in_a_training_scene(
    bank: SpriteBank, stage: Curriculum
) -> None:
    withheld = {subject.key for subject in HELD_OUT}
    assert withheld <= set(bank.sprites)
    for scene in scenes(bank, 1500, stage):
        for placed in scene.objects:
            assert placed.key not in withheld
            assert not held_out_combination(placed.key.noun, placed.colour, scene.place)


def test_about_one_combination_in_twelve_is_held_out() -> None:
    every = [held_out_combination(n, c, p) for n in NOUNS for c in COLOURS for p in PLACES]
    assert 0.06 < np.mean(every) < 0.11


def test_ten_subjects_of_ten_classes_are_held_out_and_each_class_keeps_others(bank: SpriteBank) -> None:
    assert len({s.slug for s in HELD_OUT}) == len({s.noun for s in HELD_OUT}) == 10
    for subject in HELD_OUT:
        assert len(bank.trained(subject.noun)) == len(DESIGNERS) - 1


def test_the_whole_world_comes_up(bank: SpriteBank) -> None:
    drawn = scenes(bank, 3000)
    assert {o.key.noun for s in drawn for o in s.objects} == set(NOUNS)
    assert {s.place for s in drawn} == {*PLACES, *COLOURS}
    assert {s.style for s in drawn} == set(STYLES)
    assert {s.size for s in drawn} == set(SIZES)
    assert np.mean([len(s.objects) == 2 for s in drawn]) > 0.3


def test_the_curriculum_begins_with_few_words(bank: SpriteBank) -> None:
    drawn = scenes(bank, 500, FIRST)
    assert {o.key.noun for s in drawn for o in s.objects} <= set(NOUNS[: FIRST.nouns])
    assert {s.style for s in drawn} == {"photo"}
    assert {s.size for s in drawn} == {"normal"}
    assert not any(o.mirror for s in drawn for o in s.objects)


def test_sizes_are_within_what_their_word_says(bank: SpriteBank) -> None:
    for scene in scenes(bank, 1000):
        if len(scene.objects) == 1:
            low, high = SIZES[scene.size]
            assert low <= scene.objects[0].side <= high


def test_the_same_seed_gives_the_same_scenes_and_pictures(bank: SpriteBank) -> None:
    one, other = scenes(bank, 20, seed=3), scenes(bank, 20, seed=3)
    assert one == other
    assert all(np.array_equal(draw(a, bank, 64), draw(b, bank, 64)) for a, b in zip(one, other, strict=True))
    assert scenes(bank, 20, seed=4) != one


def test_pictures_are_float32_between_0_and_1(bank: SpriteBank) -> None:
    for scene in scenes(bank, 60):
        picture = draw(scene, bank, 64)
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.float32
        assert 0 <= picture.min() <= picture.max() <= 1


@pytest.mark.parametrize("place", [*PLACES, "red"])
def test_a_scene_looks_the_same_at_64_and_at_512_px(bank: SpriteBank, place: str) -> None:
    placed = Placed(SpriteKey("dog", "noto"), None, 0.5, 0.45, 0.5, turn=6)
    scene = Scene((placed,), place, "photo", "normal", 12)
    large = Image.fromarray(np.round(draw(scene, bank, 512) * 255).astype(np.uint8))
    small = np.asarray(large.resize((64, 64), Image.Resampling.BOX), np.float32) / 255
    assert np.abs(small - draw(scene, bank, 64)).mean() < 0.03


def test_mirror_light_and_place_change_the_picture(bank: SpriteBank) -> None:
    placed = Placed(SpriteKey("dog", "noto"), None, 0.5, 0.4, 0.5)
    scene = Scene((placed,), "white", "photo", "normal", 1)
    plain = draw(scene, bank, 64)
    assert draw(replace(scene, light=0.7), bank, 64).mean() < plain.mean()
    assert not np.array_equal(draw(replace(scene, place="beach"), bank, 64), plain)
    assert not np.array_equal(draw(replace(scene, ground_seed=2), bank, 64), plain)


@pytest.mark.parametrize("style", [*STYLES, "blueprint"])
@pytest.mark.parametrize("ground", [0.0, 0.5, 1.0])
def test_styles_stay_in_range_and_on_size(style: str, ground: float) -> None:
    picture = np.full((64, 64, 3), ground, np.float32)
    picture[20:40, 20:40] = (1.0, 0.0, 0.2)
    out = in_style(picture, style, np.random.default_rng(0))
    assert out.shape == picture.shape
    assert out.dtype == np.float32
    assert out.min() >= 0
    assert out.max() <= 1


def test_a_black_and_white_photo_has_no_colour_and_pixels_are_blocks() -> None:
    picture = np.random.default_rng(0).random((80, 80, 3)).astype(np.float32)
    grey = in_style(picture, "black and white", np.random.default_rng(0))
    assert np.ptp(grey, axis=2).max() == 0
    blocks = in_style(picture, "pixel", np.random.default_rng(0)).reshape(20, 4, 20, 4, 3)
    assert np.ptp(blocks, axis=(1, 3)).max() == 0


def test_an_unknown_style_is_an_error() -> None:
    with pytest.raises(KeyError):
        in_style(np.zeros((8, 8, 3), np.float32), "cubism", np.random.default_rng(0))
