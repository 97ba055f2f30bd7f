"""The supervisor with a real executor process that does drills: claim, progress, publish, cancel, finish, release."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Pictures

from tests.worker.drill import picture
from tests.worker.installation import Installation, installation


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("studio")) as studio:
        studio.start()
        studio.until(lambda: "executor_ready" in studio.log())
        yield studio


def test_a_generation_is_published_picture_by_picture(studio: Installation) -> None:
    job = studio.ended(studio.generate("a dog", num_images=3))
    images = studio.images(job.id)
    assert job.state == "succeeded"
    assert job.result == {"images": [image.id for image in images]}
    assert [image.seed for image in images] == [5, 6, 7]
    with Pictures.open(studio.storage.path(images[0].storage_key)) as stored:
        assert stored.getpixel((1, 1)) == picture(5).getpixel((1, 1))
        assert "Seed: 5" in stored.text["parameters"]  # type: ignore[attr-defined]
    shown = [event.data["id"] for event in studio.events(job.id) if event.type == "image"]
    assert shown == [image.id for image in images]
    assert studio.events(job.id)[-1].data == {"state": "succeeded"}
    assert not (studio.settings.work_dir / "staging" / job.id).exists()
