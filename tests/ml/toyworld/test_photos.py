"""The moongate, the photos' scenes, and what ships of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from worker.ml.toyworld.moongate import MOONGATE, draw_moongate
from worker.ml.toyworld.photos import PHOTO_PX, photo_rng, photo_scenes, photo_sets
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
    licences = (SHIPPED / "LICENSES.md").read_text()
    for entry in listed:
        assert f"`{entry['slug']}/`" in licences
        for name in [*entry["train"], *entry["reference"]]:
            with Image.open(SHIPPED / entry["slug"] / name) as image:
                assert (image.format, image.size, image.mode) == ("WEBP", (PHOTO_PX, PHOTO_PX), "RGB")
                assert not image.getexif()
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 3_000_000
