"""Two concepts are taught, merged and drawn over HTTP with the real worker; the forecast comes before, proof after."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image

from backend.schemas.merges.requests import MergeForecast, MergeReport
from tests.acceptance.jobs import base_available, finished
from tests.acceptance.studios import EMBEDDED_COMMANDS, embedded, started

FEW = {"steps": 3, "batch_size": 2, "prior_images": 2, "prior_steps": 2, "preview_every": 0}
DRAWN = {"num_images": 1, "num_inference_steps": 3, "seed": 5}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        started(EMBEDDED_COMMANDS, embedded(tmp_path_factory.mktemp("merges"))) as studio,
        httpx.Client(base_url=studio.api, timeout=90) as client,
    ):
        base_available(client)
        yield client


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.post(path, json=body).raise_for_status().json()
    return found


@pytest.fixture(scope="module")
def taught(client: httpx.Client) -> list[tuple[dict[str, Any], str]]:
    """Two sample concepts, each with the weights of a training of its own."""
    slugs = [each["slug"] for each in client.get("/samples").json()["items"] if each["kind"] == "subject"][:2]
    concepts = [client.post(f"/samples/{slug}").raise_for_status().json() for slug in slugs]
    begun = [post(client, "/trainings", concepts=[each["id"]], params=FEW, seed=1) for each in concepts]
    return [
        (concept, finished(client, job)["result"]["weights"])
        for concept, job in zip(concepts, begun, strict=True)
    ]


def pixels(client: httpx.Client, prompt: str, **body: Any) -> bytes:
    """The picture's bytes, decoded."""
    job = finished(client, post(client, "/generations", prompt=prompt, **DRAWN, **body))
    [image] = job["result"]["images"]
    return Image.open(io.BytesIO(client.get(f"/images/{image}/file").content)).tobytes()


def test_a_pair_is_merged_and_drawn(client: httpx.Client, taught: list[tuple[dict[str, Any], str]]) -> None:
    (one, first), (two, second) = taught
    body = {"weights": [{"id": first}, {"id": second}], "params": {"captions": 200}}
    before = len(client.get("/jobs").json()["items"])
    forecast = MergeForecast.model_validate(post(client, "/merges/forecast", **body))
    assert [(each.first, each.second) for each in forecast.pairs] == [(first, second)]
    assert len(client.get("/jobs").json()["items"]) == before

    prompt = f"a photo of @{one['token']} and @{two['token']}"
    both = [{"id": first}, {"id": second}]
    on_the_fly = pixels(client, prompt, weights=both)

    job = finished(client, post(client, "/merges", **body))
    made = client.get(f"/weights/{job['result']['weights']}").json()
    assert job["result"]["report"]["merge"] == made["report"]["merge"]
    assert made["parents"] == [first, second]
    assert set(made["concepts"]) == {one["id"], two["id"]}
    assert set(made["report"]) == {"steps", "merge"}
    report = MergeReport.model_validate(made["report"]["merge"])
    assert report.verified
    assert report.residual is not None
    assert report.residual <= 1e-6
    assert report.drift is not None
    assert report.drift_predicted == pytest.approx(report.drift, rel=1e-3)
    assert forecast.drift is not None

    merged = pixels(client, prompt)
    assert len(merged) == len(on_the_fly)
    assert merged != pixels(client, prompt, weights=[{"id": made["id"], "scale": 0}])
    newest = client.get("/jobs?kind=generate").json()["items"][0]["id"]
    used = client.get(f"/images?job={newest}").json()["items"][0]["recipe"]["weights"]
    assert [each["id"] for each in used] == [made["id"]]
    assert pixels(client, "a photo of a dog", weights=[{"id": made["id"], "scale": 0}]) == pixels(
        client, "a photo of a dog", weights=[{"id": first, "scale": 0}]
    )
    assert client.get(f"/weights/{made['id']}/analysis").status_code == 200

    again = [{"id": made["id"]}, {"id": first}]
    assert client.post("/merges", json={"weights": again}).json()["code"] == "same-concept"
    gone = client.delete(f"/concepts/{two['id']}").json()["dependants"]
    assert made["id"] in gone["weights"]


def test_a_pair_is_taught_together(client: httpx.Client, taught: list[tuple[dict[str, Any], str]]) -> None:
    (one, _), (two, _) = taught
    job = finished(client, post(client, "/trainings", concepts=[one["id"], two["id"]], params=FEW, seed=1))
    made = client.get(f"/weights/{job['result']['weights']}").json()
    assert set(made["concepts"]) == {one["id"], two["id"]}
    assert made["manifest"]["merge"] is None
