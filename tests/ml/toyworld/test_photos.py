"""The moongate, the photos' scenes, and what ships of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import openmoji
from worker.ml.toyworld.moongate import MOONGATE, draw_moongate
from worker.ml.toyworld.photos import PHOTO_PX, licences_text, photo_rng, photo_scenes, photo_sets
from worker.ml.toyworld.sprites import DESIGNERS
from worker.ml.toyworld.world import NOUNS

SHIPPED = Path(__file__).resolve().parents[3] / "backend/sample_photos"


def test_the_moongate_is_a_wall_with_a_round_hole() -> None:
    gate = draw_moongate(128)
    assert gate.shape == (128, 128, 4)
    assert gate.dtype == np.float32
    assert 0 <= gate.min() <= gate.max() <= 1
    assert gate[68, 64, 3] == 0
    assert gate[68, 12, 3] == 1
    assert np.array_equal(gate, draw_moongate(128))


def test_the_moongate_is_a_category_of_its_own() -> None:
    assert MOONGATE.noun not in NOUNS
    assert MOONGATE.designer not in DESIGNERS


def test_photos_differ_in_everything_but_the_subject() -> None:
    for each in photo_sets():
        scenes = list(photo_scenes(each.key, photo_rng(each.slug)))
        assert scenes == list(photo_scenes(each.key, photo_rng(each.slug)))
        assert len({scene.place for scene in scenes}) == len(scenes) == 10
        assert {scene.objects[0].key for scene in scenes} == {each.key}
        assert {scene.objects[0].colour for scene in scenes} == {None}
        assert {scene.objects[0].mirror for scene in scenes} == {True, False}
        assert len({scene.light for scene in scenes}) == 10


def test_the_shipped_photos_are_what_the_list_says() -> None:
    listed = json.loads((SHIPPED / "samples.json").read_text())["subjects"]
    assert listed == [each.entry() for each in photo_sets()]
    assert sum(entry["featured"] for entry in listed) == 3
    assert (SHIPPED / "LICENSES.md").read_text() == licences_text(photo_sets())
    check_pictures(SHIPPED, listed, at_most=3_000_000)


def test_the_photos_of_benchmarks_are_what_the_list_says() -> None:
    """Of a designer that nothing was trained on, of classes that have a sample subject, and never shipped as sample."""
    listed = json.loads((openmoji.PHOTOS / "samples.json").read_text())["subjects"]
    assert listed == [each.entry() for each in openmoji.photo_sets()]
    assert {entry["licence"] for entry in listed} == {"CC BY-SA 4.0"}
    assert {entry["class_noun"] for entry in listed} <= {each.key.noun for each in photo_sets()}
    assert openmoji.DESIGNER not in DESIGNERS
    assert (openmoji.PHOTOS / "LICENSES.md").read_text() == licences_text(openmoji.photo_sets())
    check_pictures(openmoji.PHOTOS, listed, at_most=500_000)


def check_pictures(folder: Path, listed: list[dict[str, Any]], *, at_most: int) -> None:
    for entry in listed:
        for name in [*entry["train"], *entry["reference"]]:
            with Image.open(folder / entry["slug"] / name) as image:
                assert (image.format, image.size, image.mode) == ("WEBP", (PHOTO_PX, PHOTO_PX), "RGB")
                assert not image.getexif()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < at_most
