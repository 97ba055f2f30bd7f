"""Further drawings of the classes: what is listed, how a symbol is filled in, how a bank varies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.ml.toyworld.painted import painted
from worker.ml.toyworld.captions import caption
from worker.ml.toyworld.class_drawings import (
    ICON_SETS,
    IN_COLOUR,
    SYMBOLS,
    VariedBank,
    filled_in,
    hue_turn,
    listed,
)
from worker.ml.toyworld.judge_training import further_classes, widened, wrong_caption
from worker.ml.toyworld.photos import LICENCES
from worker.ml.toyworld.scenes import Placed, SpriteBank, sample_scene
from worker.ml.toyworld.sprites import SpriteKey
from worker.ml.toyworld.tokenizer import train_tokenizer
from worker.ml.toyworld.world import HELD_OUT, NOUNS


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    """Every set with every name that is looked for, each another drawing."""
    names = {icon for wanted in IN_COLOUR.values() for icon in wanted}
    names |= {icon for nouns in SYMBOLS.values() for wanted in nouns.values() for icon in wanted}
    for name in ICON_SETS:
        folder = tmp_path / "node_modules" / "@iconify-json" / name
        folder.mkdir(parents=True)
        drawn = {icon: {"body": f"<!-- {name} {icon} -->"} for icon in sorted(names)}
        (folder / "icons.json").write_text(json.dumps({"icons": drawn}))
    return tmp_path


def test_no_drawing_by_the_designer_of_a_held_out_subject(icons: Path) -> None:
    keys = [key for key, _ in listed(icons)]
    assert {key.noun for key in keys} == set(NOUNS)
    for subject in HELD_OUT:
        sets = {key.designer.partition(":")[0] for key in keys if key.noun == subject.noun}
        assert subject.key.designer not in sets
        assert len(sets) > 3


def test_a_picture_under_two_names_is_listed_once(icons: Path) -> None:
    path = icons / "node_modules" / "@iconify-json" / "noto" / "icons.json"
    drawn = json.loads(path.read_text())["icons"] | {"poodle": {"body": "<!-- noto dog -->"}}
    path.write_text(json.dumps({"icons": drawn}))
    found = [key.designer for key, _ in listed(icons) if key.designer.startswith("noto:")]
    assert "noto:dog" in found
    assert "noto:poodle" not in found


def test_every_set_has_its_licence() -> None:
    assert set(ICON_SETS) <= set(LICENCES)


def test_a_symbol_is_filled_where_it_encloses() -> None:
    ring = np.zeros((20, 20, 4), np.float32)
    ring[4:16, 4:16, 3] = 1
    ring[7:13, 7:13, 3] = 0
    drawing = filled_in(ring, (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    assert np.allclose(drawing[5, 5], (0.1, 0.2, 0.3, 1))
    assert np.allclose(drawing[10, 10], (0.9, 0.8, 0.7, 1))
    assert drawing[0, 0, 3] == 0


def test_an_open_symbol_stays_open() -> None:
    hook = np.zeros((20, 20, 4), np.float32)
    hook[4:16, 4, 3] = hook[4:16, 15, 3] = hook[15, 4:16, 3] = 1
    assert filled_in(hook, (0, 0, 0), (1, 1, 1))[10, 10, 3] == 0


def test_a_hue_turn_leaves_grey_and_the_mean_alone() -> None:
    turn = hue_turn(2.0, 0.7)
    assert np.allclose(np.float32([0.4, 0.4, 0.4]) @ turn, 0.4, atol=1e-6)
    assert np.isclose((np.float32([0.9, 0.2, 0.1]) @ turn).mean(), 0.4, atol=1e-6)
    assert np.allclose(np.float32([1, 0, 0]) @ hue_turn(2 * np.pi / 3, 1), (0, 1, 0), atol=1e-6)


def test_a_varied_bank_draws_both_kinds_and_never_the_same_twice(bank: SpriteBank) -> None:
    key = SpriteKey("dog", "mdi:dog:0")
    more = {key: painted(key)}
    varied = VariedBank(bank.sprites, more=more)
    offered = [varied.trained("dog") for _ in range(40)]
    assert list(more) in offered
    assert bank.trained("dog") in offered
    assert all(varied.trained("cat") == bank.trained("cat") for _ in range(10))
    placed = Placed(key, None, 0.5, 0.5, 0.5)
    pictures = [np.asarray(varied.picture(placed, 32)) for _ in range(6)]
    assert any(not np.array_equal(pictures[0], other) for other in pictures[1:])
    assert all((picture[..., :3] <= picture[..., 3:]).all() for picture in pictures)


def test_a_named_colour_keeps_its_hue(bank: SpriteBank) -> None:
    key = bank.trained("dog")[0]
    varied = VariedBank(bank.sprites, bend=0.0)
    for _ in range(8):
        red = np.asarray(varied.picture(Placed(key, "red", 0.5, 0.5, 0.5), 32), np.float32)
        assert red[..., 0].sum() > 1.3 * red[..., 2].sum()


def test_further_classes_enter_scenes_and_wrong_captions(bank: SpriteBank) -> None:
    taxi = {SpriteKey("taxi", name): painted(SpriteKey("taxi", name)) for name in ("noto", "twemoji")}
    tram = {SpriteKey("tram", "noto"): painted(SpriteKey("tram", "noto"))}
    varied = VariedBank({**bank.sprites, **taxi, **tram})
    rng = np.random.default_rng(0)
    tokenizer = train_tokenizer(caption(sample_scene(bank, rng), rng) for _ in range(300))
    assert further_classes(varied, tokenizer) == ("taxi",)
    scenes = [widened(sample_scene(varied, rng), varied, ("taxi",), rng) for _ in range(60)]
    nouns = [placed.key.noun for scene in scenes for placed in scene.objects]
    assert 0.2 < nouns.count("taxi") / len(nouns) < 0.6
    alone = next(s for s in scenes if len(s.objects) == 1 and s.objects[0].key.noun == "taxi")
    wrong = [wrong_caption(alone, rng, ("taxi", "tram")) for _ in range(60)]
    assert any("tram" in text for text in wrong)
    assert not any(noun in text for noun in NOUNS for text in wrong)
