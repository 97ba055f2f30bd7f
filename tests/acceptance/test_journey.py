"""Upload, train, generate, gallery over HTTP: on the embedded profile, and on real Postgres, Redis and Celery."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image
from safetensors import safe_open

from tests.acceptance.jobs import base_available, finished
from tests.acceptance.studios import (
    EMBEDDED_COMMANDS,
    ROOT,
    RunningStudio,
    embedded,
    migrate,
    server,
    server_commands,
    started,
)
from tests.servers import Servers

STARK = sorted((ROOT / "backend/sample_photos/stark").glob("0[0-4].webp"))
FEW = {"steps": 8, "batch_size": 2, "prior_images": 4, "prior_steps": 4, "preview_every": 4}


@pytest.fixture(scope="module", params=["embedded", pytest.param("server", marks=pytest.mark.servers)])
def studio(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStudio]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        with started(EMBEDDED_COMMANDS, embedded(folder)) as running:
            yield running
    else:
        servers: Servers = request.getfixturevalue("servers")
        studio = server(folder, servers.fresh_database(), servers.redis_url)
        migrate(studio)
        with started(server_commands(studio), studio) as running:
            yield running


@pytest.fixture(scope="module")
def client(studio: RunningStudio) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=studio.api, timeout=90) as client:
        base_available(client)
        yield client


@pytest.fixture(scope="module")
def concept(client: httpx.Client) -> dict[str, Any]:
    answer = client.post("/concepts", json={"name": "Stark", "kind": "subject", "class_noun": "dog"})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    for photo in STARK:
        stored = client.post(
            f"/concepts/{made['id']}/photos", files=[("files", (photo.name, photo.read_bytes()))]
        )
        assert stored.status_code == 201, stored.text
    full: dict[str, Any] = client.get(f"/concepts/{made['id']}").json()
    assert len(full["photos"]) == 5
    return full


@pytest.fixture(scope="module")
def training(client: httpx.Client, concept: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(
        "/trainings", json={"concepts": [concept["id"]], "preset": "quick", "params": FEW, "seed": 3}
    )
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/api/v1/jobs/{answer.json()['id']}"
    return finished(client, answer.json())


@pytest.fixture(scope="module")
def generation(client: httpx.Client, training: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(
        "/generations",
        json={
            "prompt": "a photo of @stark in the snow",
            "num_images": 3,
            "seed": 11,
            "num_inference_steps": 6,
        },
    )
    assert answer.status_code == 202, answer.text
    return finished(client, answer.json())


def test_a_base_model_is_available(client: httpx.Client) -> None:
    bases = client.get("/bases").json()["items"]
    assert any(base["available"] and "custom-diffusion" in base["methods"] for base in bases)


def test_the_training_publishes_weights_that_describe_themselves(
    client: httpx.Client, training: dict[str, Any], tmp_path: Path
) -> None:
    weights = client.get(f"/weights/{training['result']['weights']}").raise_for_status().json()
    answer = client.get(weights["file_url"].removeprefix("/api/v1"))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(answer.content)
    assert weights["size_bytes"] == len(answer.content)
    assert "stark" in answer.headers["content-disposition"]
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["moongate"]) == weights["manifest"]
    assert weights["manifest"]["tokens"][0]["token"] == "stark"
    analysis = client.get(f"/weights/{weights['id']}/analysis").json()
    assert analysis["mean_by_group"]["cross-attention"] > 0


def test_the_events_of_the_training_replay_gapless_from_step_zero(
    client: httpx.Client, training: dict[str, Any]
) -> None:
    stream = client.get(f"/jobs/{training['id']}/events", headers={"accept": "text/event-stream"}).text
    sequence = [int(number) for number in re.findall(r"^id: \S+:(\d+)$", stream, re.M)]
    assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))
    kinds = re.findall(r"^event: (\w+)$", stream, re.M)
    assert {"state", "progress", "loss", "preview", "done"} <= set(kinds)
    assert kinds[-1] == "done"
    previews = [
        json.loads(data)
        for kind, data in re.findall(r"^event: (\w+)\ndata: (.*)$", stream, re.M)
        if kind == "preview"
    ]
    assert {0, FEW["steps"]} <= {preview["step"] for preview in previews}
    assert client.get(previews[0]["url"].removeprefix("/api/v1")).headers["content-type"].startswith("image/")


def test_pictures_carry_their_recipe_and_stand_in_the_gallery(
    client: httpx.Client, concept: dict[str, Any], generation: dict[str, Any]
) -> None:
    ids = generation["result"]["images"]
    assert len(ids) == 3
    listed = client.get("/images", params={"concept": concept["id"]}).json()["items"]
    assert {image["id"] for image in listed} == set(ids)
    image = client.get(f"/images/{ids[0]}").json()
    assert image["recipe"]["prompt"] == "a photo of @stark in the snow"
    assert image["recipe"]["text"] == "a photo of <stark> dog in the snow"
    picture = Image.open(io.BytesIO(client.get(f"/images/{ids[0]}/file").content))
    assert isinstance(picture, Image.Image)
    assert picture.format == "PNG"
    assert picture.size == (image["width"], image["height"])
    assert json.loads(picture.info["moongate"])["seed"] == image["recipe"]["seed"]
    assert "Seed: 11" in picture.info["parameters"]
    assert client.get("/images", params={"q": "snow", "starred": "false"}).json()["items"]


def test_the_same_recipe_draws_the_same_picture(client: httpx.Client, generation: dict[str, Any]) -> None:
    image = client.get(f"/images/{generation['result']['images'][1]}").json()
    recipe = image["recipe"]
    keys = (
        "prompt",
        "seed",
        "num_inference_steps",
        "guidance_scale",
        "scheduler",
        "width",
        "height",
        "weights",
    )
    again = client.post("/generations", json={key: recipe[key] for key in keys} | {"num_images": 1}).json()
    repeated = finished(client, again)["result"]["images"][0]
    files = [
        Image.open(io.BytesIO(client.get(f"/images/{one}/file").content)).convert("RGB")
        for one in (image["id"], repeated)
    ]
    difference = max(abs(a - b) for a, b in zip(files[0].tobytes(), files[1].tobytes(), strict=True))
    assert difference <= 2


def test_an_exported_file_is_imported_and_drawn_with(client: httpx.Client, training: dict[str, Any]) -> None:
    """As in another studio: a concept of its own, the same tensors, the same picture."""
    exported = client.get(f"/weights/{training['result']['weights']}/file").content
    answer = client.post("/weights/import", files={"file": ("stark.safetensors", exported)})
    assert answer.status_code == 201, answer.text
    imported = client.get(f"/concepts/{answer.json()['concepts'][0]}").json()
    assert imported["token"] == "stark-2"
    drawn = []
    for token in ("stark", imported["token"]):
        body = {"prompt": f"a photo of @{token}", "num_images": 1, "seed": 4, "num_inference_steps": 4}
        [image] = finished(client, client.post("/generations", json=body).json())["result"]["images"]
        drawn.append(Image.open(io.BytesIO(client.get(f"/images/{image}/file").content)).convert("RGB"))
    apart = zip(drawn[0].tobytes(), drawn[1].tobytes(), strict=True)
    assert max(abs(a - b) for a, b in apart) <= 2


def test_the_curl_journey_of_the_readme(studio: RunningStudio, tmp_path: Path) -> None:
    """The block of the README, from the repository's folder; only names, steps and the target folder differ."""
    if shutil.which("curl") is None:
        raise AssertionError("curl is part of the journey that is tested")
    block = re.search(r"<!-- journey -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block
    script = (
        block[1]
        .replace("-o stark", f"-o {tmp_path}/stark")
        .replace('"name": "Stark"', '"name": "Curl", "token": "curl"')
    )
    script = script.replace("@stark", "@curl").replace(
        '\\"preset\\"', f'\\"params\\": {json.dumps(FEW).replace(chr(34), chr(92) + chr(34))}, \\"preset\\"'
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**studio.environment, "MOONGATE_API": studio.api},
        capture_output=True,
        text=True,
        timeout=420,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert Image.open(tmp_path / "stark-in-the-snow.png").size >= (64, 64)
    with safe_open(tmp_path / "stark.safetensors", "pt") as file:
        assert "moongate" in file.metadata()


def test_weights_are_made_smaller_and_draw(client: httpx.Client, training: dict[str, Any]) -> None:
    old = client.get(f"/weights/{training['result']['weights']}").raise_for_status().json()
    budget = old["size_bytes"] // 5
    body = {"weights": old["id"], "max_bytes": budget, "precision": "int8"}
    done = finished(client, client.post("/compressions", json=body).raise_for_status().json())
    new = client.get(f"/weights/{done['result']['weights']}").raise_for_status().json()
    report = new["report"]["compression"]
    assert new["size_bytes"] == report["bytes_after"] <= budget
    assert (new["parents"], report["bytes_before"]) == ([old["id"]], old["size_bytes"])
    assert 0 < report["relative_error"] < report["one_rank"]["relative_error"] + 0.02
    assert client.get(f"/weights/{new['id']}/analysis").json()["mean_by_group"]["cross-attention"] > 0
    asked = {"prompt": "@stark", "weights": [{"id": new["id"]}], "num_images": 1, "num_inference_steps": 2}
    assert len(finished(client, client.post("/generations", json=asked).json())["result"]["images"]) == 1
