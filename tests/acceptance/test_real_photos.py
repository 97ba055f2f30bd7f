"""Photographs of real things go the whole road: sideways and full of metadata as sent, upright and bare in the studio.

The folder is named by ``MOONGATE_TEST_PHOTOS``: one sub-folder a subject. Toyworld has seen emoji only; what it
makes of them is not judged here, that it learns (their loss is lower with what was learned than without) is.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.acceptance.jobs import base_available, finished
from tests.acceptance.studios import EMBEDDED_COMMANDS, RunningStudio, embedded, started
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS
from worker.ml.streams import rng
from worker.ml.training.augmentation import Draw, open_square, render
from worker.ml.training.captions import photo_caption

pytestmark = pytest.mark.photos

TOYWORLD = Path(__file__).parents[2] / "worker" / "base_models" / "toyworld"
FOLDER = Path(os.environ["MOONGATE_TEST_PHOTOS"])
NOUNS = {
    "backpack": "backpack",
    "cat2": "cat",
    "clock": "clock",
    "dog6": "dog",
    "duck_toy": "duck",
    "teapot": "teapot",
}
GPS, ORIENTATION, MAKER, SIDEWAYS = 0x8825, 0x0112, 0x010F, 6
QUICK = {"steps": 40, "prior_images": 4, "prior_steps": 4, "preview_every": 0}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    with started(EMBEDDED_COMMANDS, embedded(tmp_path_factory.mktemp("photos"))) as running:
        yield running


@pytest.fixture(scope="module")
def client(studio: RunningStudio) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=studio.api, timeout=90) as client:
        base_available(client)
        yield client


@pytest.fixture(scope="module")
def toyworld() -> DiffusionModel:
    return load_base(TOYWORLD)


def save(folder: Path, content: bytes) -> Path:
    path = folder / "weights.safetensors"
    path.write_bytes(content)
    return path


def photo_loss(model: DiffusionModel, weights: ConceptWeights, folder: Path, scale: float) -> float:
    """Of the photos under the caption they were trained with, at ``scale`` of the edit (0: the untouched base);
    the same noise and time steps for every scale, which a training's own losses do not share.
    """
    photos = torch.stack([render(open_square(path, 64), Draw(64, 0, 0, "", False), 64, model.cell).pixels
                          for path in sorted(folder.glob("*.jpg"))])  # fmt: skip
    taught = weights.manifest.tokens[0]
    edit = METHODS[weights.manifest.method].edit(model, weights)
    prompt = Prompt(photo_caption(taught.token, taught.class_noun, taught.kind), ((edit, scale),))
    losses = []
    with torch.no_grad():
        latents = model.encode_images(photos)
        for draw in range(24):
            noisy, timesteps, target = model.noised(latents, rng(0, "photo loss", draw))
            conditioning = text_kv(model, [prompt]).rows([0] * len(latents))
            losses.append(float((model.predict(noisy, timesteps, conditioning) - target).square().mean()))
    return sum(losses) / len(losses)


def as_a_phone_saves_it(photo: Path) -> bytes:
    """The same picture lying on its side, with the tag that says so, the maker and a place."""
    with Image.open(photo) as image:
        lying = image.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    tags = Image.Exif()
    tags[ORIENTATION], tags[MAKER] = SIDEWAYS, "Secret Maker"
    tags.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 36.0)})
    buffer = io.BytesIO()
    lying.save(buffer, "JPEG", quality=95, exif=tags, comment=b"a private word")
    return buffer.getvalue()


def test_the_folder_holds_the_subjects() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} == set(NOUNS)


@pytest.mark.parametrize("subject", sorted(NOUNS))
def test_a_real_subject_goes_the_whole_road(
    client: httpx.Client, studio: RunningStudio, toyworld: DiffusionModel, tmp_path: Path, subject: str
) -> None:
    token = re.sub(r"[^a-z]", "", subject)
    made = client.post(
        "/concepts", json={"name": subject, "kind": "subject", "class_noun": NOUNS[subject], "token": token}
    )
    assert made.status_code == 201, made.text
    concept = made.json()["id"]
    for photo in sorted((FOLDER / subject).glob("*.jpg")):
        sent = as_a_phone_saves_it(photo)
        answer = client.post(f"/concepts/{concept}/photos", files=[("files", ("IMG_0001.JPG", sent))])
        assert answer.status_code == 201, answer.text
        stored = answer.json()["items"][0]
        for url in (stored["url"], stored["thumbnail_url"]):
            served = client.get(url.removeprefix("/api/v1"))
            assert served.status_code == 200
            assert b"Secret Maker" not in served.content
            assert b"private word" not in served.content
            with Image.open(io.BytesIO(served.content)) as picture:
                assert len(picture.getexif()) == 0
                assert not {"exif", "xmp", "comment", "photoshop"} & set(picture.info)
        with (
            Image.open(photo) as upright,
            Image.open(io.BytesIO(client.get(stored["url"][7:]).content)) as mine,
        ):
            assert (stored["width"], stored["height"]) == upright.size == mine.size
            small = [np.asarray(one.convert("RGB").resize((64, 64)), np.float32) for one in (upright, mine)]
            assert np.abs(small[0] - small[1]).mean() < 6

    training = client.post("/trainings", json={"concepts": [concept], "params": QUICK, "seed": 1})
    assert training.status_code == 202, training.text
    finished(client, training.json())
    stream = client.get(f"/jobs/{training.json()['id']}/events").text
    assert sum(data.count("[") > 1 for data in re.findall(r"^event: loss\ndata: (.*)$", stream, re.M)) > 0
    weights = client.get(f"/jobs/{training.json()['id']}").json()["result"]["weights"]
    learned = ConceptWeights.load(save(tmp_path, client.get(f"/weights/{weights}/file").content))
    before, after = (photo_loss(toyworld, learned, FOLDER / subject, scale) for scale in (0.0, 1.0))
    assert after < before, "it learned nothing of these photos"
    drawn = client.post(
        "/generations", json={"prompt": f"a photo of @{token}", "num_images": 1, "num_inference_steps": 6}
    )
    finished(client, drawn.json())


def test_nothing_private_lies_on_the_disk(studio: RunningStudio) -> None:
    files = [path for path in studio.data_dir.rglob("*") if path.is_file() and path.suffix != ".log"]
    assert files
    for path in files:
        content = path.read_bytes()
        assert b"Secret Maker" not in content, path
        assert b"private word" not in content, path
