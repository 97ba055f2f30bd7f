"""Two concepts that were learned separately share a picture, each in its box, over HTTP with the real worker."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from tests.acceptance.jobs import base_available, finished
from tests.acceptance.studios import EMBEDDED_COMMANDS, RunningStudio, embedded, started

FEW = {
    "steps": 6,
    "batch_size": 2,
    "prior_images": 2,
    "prior_steps": 2,
    "preview_every": 0,
    "learning_rate": 0.005,
}
LEFT = {"x": 0.0, "y": 0.1, "width": 0.5, "height": 0.85}
RIGHT = {"x": 0.5, "y": 0.1, "width": 0.5, "height": 0.85}
KEPT = ("prompt", "seed", "num_inference_steps", "guidance_scale", "scheduler", "width", "height", "weights",
        "base_share", "late_base_share")  # fmt: skip


def taught(client: httpx.Client) -> dict[str, str]:
    """Two sample concepts with hardly any training: token -> weights."""
    made = {}
    for slug in ("stark", "domino"):
        concept = client.post(f"/samples/{slug}").raise_for_status().json()
        body = {"concepts": [concept["id"]], "preset": "quick", "params": FEW, "seed": 3}
        job = client.post("/trainings", json=body).raise_for_status().json()
        made[slug] = finished(client, job)["result"]["weights"]
    return made


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    studio: RunningStudio = embedded(tmp_path_factory.mktemp("regions"))
    with started(EMBEDDED_COMMANDS, studio), httpx.Client(base_url=studio.api, timeout=90) as client:
        base_available(client)
        yield client


def picture(client: httpx.Client, image: str) -> Image.Image:
    opened = Image.open(io.BytesIO(client.get(f"/images/{image}/file").raise_for_status().content))
    opened.load()
    return opened


@pytest.fixture(scope="module")
def weights(client: httpx.Client) -> dict[str, str]:
    return taught(client)


def test_two_concepts_each_in_a_box(client: httpx.Client, weights: dict[str, str]) -> None:
    asked = {
        "prompt": "a photo of @stark and @domino on the beach", "num_images": 1, "seed": 5, "num_inference_steps": 4,
        "regions": [{**LEFT, "prompt": "@stark"}, {**RIGHT, "prompt": "@domino"}], "base_share": 0.1,
    }  # fmt: skip
    job = client.post("/generations", json=asked).raise_for_status().json()
    [first] = finished(client, job)["result"]["images"]
    image = client.get(f"/images/{first}").json()
    recipe, drawn = image["recipe"], picture(client, first)
    assert recipe["text"] == "a photo of a dog and a cat on the beach"
    assert [region["text"] for region in recipe["regions"]] == [
        "a photo of a <stark> dog and a <stark> dog on the beach",
        "a photo of a <domino> cat and a <domino> cat on the beach",
    ]
    assert [region["weights"][0]["id"] for region in recipe["regions"]] == [
        weights["stark"],
        weights["domino"],
    ]
    assert json.loads(drawn.info["moongate"]) == recipe
    assert "<domino> cat" in drawn.info["parameters"]
    assert len(image["concepts"]) == 2

    # the recipe draws it again; other boxes draw another picture
    again = {name: recipe[name] for name in KEPT} | {"num_images": 1}
    again["regions"] = [
        {name: value for name, value in each.items() if name != "text"} for each in recipe["regions"]
    ]
    repeated = client.post("/generations", json=again).raise_for_status().json()
    turned = {**asked, "regions": [{**RIGHT, "prompt": "@stark"}, {**LEFT, "prompt": "@domino"}]}
    other = client.post("/generations", json=turned).raise_for_status().json()
    pixels = [
        np.asarray(picture(client, finished(client, each)["result"]["images"][0]).convert("RGB"), int)
        for each in (repeated, other)
    ]
    ours = np.asarray(drawn.convert("RGB"), int)
    assert np.abs(pixels[0] - ours).max() <= 2
    assert np.abs(pixels[1] - ours).max() > 2


@pytest.mark.usefixtures("weights")
def test_pictures_are_looked_at_and_tried_again(client: httpx.Client) -> None:
    """Hardly trained concepts are hardly there, so that every try is made; the kept one has the recipe of its seed."""
    asked = {
        "prompt": "@stark and @domino on the beach", "num_images": 2, "seed": 7, "num_inference_steps": 2,
        "regions": [{**LEFT, "prompt": "@stark"}, {**RIGHT, "prompt": "@domino"}], "check": True,
        "retry_until_present": 1,
    }  # fmt: skip
    job = client.post("/generations", json=asked).raise_for_status().json()
    for index, image in enumerate(finished(client, job)["result"]["images"]):
        recipe = client.get(f"/images/{image}").json()["recipe"]
        assert [each["token"] for each in recipe["presence"]] == ["domino", "stark"]
        assert {each["state"] for each in recipe["presence"]} <= {"present", "fused", "missing", "unknown"}
        assert recipe["presence"][1]["box"] == LEFT
        assert recipe["seed"] in (7 + index, 9 + index)
        assert json.loads(picture(client, image).info["moongate"]) == recipe
        again = {name: recipe[name] for name in KEPT} | {"num_images": 1, "regions": asked["regions"]}
        [repeated] = finished(client, client.post("/generations", json=again).json())["result"]["images"]
        apart = [np.asarray(picture(client, each).convert("RGB"), int) for each in (image, repeated)]
        assert np.abs(apart[0] - apart[1]).max() <= 2
