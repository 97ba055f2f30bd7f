"""The main road over HTTP, with the worker's part played through the real services."""

from __future__ import annotations

import io
import json
import re

from fastapi.testclient import TestClient
from PIL import Image

from tests.backend.conftest import Api, on_both_databases
from tests.backend.workshop import Workshop

pytestmark = on_both_databases


def test_from_photos_to_pictures(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept, weights_id = api.taught(workshop)
    shown = client.get(f"/api/v1/concepts/{concept['id']}").json()
    assert [weights["id"] for weights in shown["weights"]] == [weights_id]
    assert len(shown["photos"]) == 3

    job = api.generate("a photo of @stark in the snow", num_images=2, seed=5)
    assert job["state"] == "queued"
    images = workshop.draw()
    done = client.get(f"/api/v1/jobs/{job['id']}").json()
    assert done["state"] == "succeeded"
    assert done["result"]["images"] == images

    listed = client.get("/api/v1/images", params={"concept": concept["id"]}).json()["items"]
    assert [image["id"] for image in listed] == images[::-1]
    image = listed[-1]
    assert image["recipe"]["text"] == "a photo of <stark> dog in the snow"
    assert image["recipe"]["weights"] == [{"id": weights_id, "scale": 1.0, "gate": None}]
    assert image["concepts"] == [concept["id"]]
    picture = client.get(image["url"])
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (64, 64)


def test_a_training_streams_its_events_to_the_end(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = api.concept(photos=3)
    job = api.train(concept["id"])
    workshop.train()
    text = client.get(job["urls"]["events"]).text
    ids = [int(number) for number in re.findall(r"^id: \S+:(\d+)$", text, re.M)]
    assert ids == list(range(1, len(ids) + 1))
    kinds = re.findall(r"^event: (\w+)\ndata: (.*)$", text, re.M)
    assert [kind for kind, _ in kinds][-1] == "done"
    preview = next(json.loads(data) for kind, data in kinds if kind == "preview")
    assert client.get(preview["url"]).headers["content-type"].startswith("image/")


def test_the_weights_come_under_a_speaking_name(client: TestClient, api: Api, workshop: Workshop) -> None:
    _, weights_id = api.taught(workshop)
    weights = client.get(f"/api/v1/weights/{weights_id}").json()
    answer = client.get(weights["file_url"])
    assert answer.headers["content-disposition"] == (
        'attachment; filename="stark-toy-custom-diffusion-v1.safetensors"'
    )
    assert len(answer.content) == weights["size_bytes"]
    assert client.get(weights["file_url"], params={"format": "kohya"}).json()["code"] == "export-first"


def test_a_dry_run_forecasts_and_makes_no_job(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = api.concept(photos=3)
    body = {"concepts": [concept["id"]], "preset": "quick", "dry_run": True}
    before = client.post("/api/v1/trainings", json=body)
    assert before.status_code == 200
    assert before.json()["expected_s"] is None
    assert client.get("/api/v1/jobs").json()["items"] == []
