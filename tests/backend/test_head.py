"""HEAD answers as GET does, without the body: on every route that has a GET, files, streams and problems included."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop

CHANGING = {"date", "x-request-id"}


def alike(client: TestClient, address: str, **headers: str) -> int:
    """Both answers have the same status and headers, and one has no body; the status."""
    got, headed = client.get(address, headers=headers), client.head(address, headers=headers)
    assert headed.status_code == got.status_code, address
    assert headed.content == b"", address
    kept = [{k: v for k, v in one.headers.items() if k not in CHANGING} for one in (got, headed)]
    if got.headers.get("content-type") == "application/problem+json" or address == "/metrics":
        for each in kept:  # the body names the request, so its length may differ by a digit
            each.pop("content-length", None)
    assert kept[0] == kept[1], address
    return got.status_code


def test_every_get_route_answers_head(client: TestClient, app: FastAPI, api: Api, workshop: Workshop) -> None:
    concept, weights = api.taught(workshop)
    job = client.get("/api/v1/jobs").json()["items"][0]["id"]
    photo = client.get(f"/api/v1/concepts/{concept['id']}").json()["photos"][0]
    for path, operations in app.openapi()["paths"].items():
        if "get" in operations and "events" not in path:
            kind = path.split("/")[3] if path.startswith("/api/v1/") else ""
            one = {"concepts": concept["id"], "weights": weights, "jobs": job}.get(kind, "nonsense")
            alike(
                client, path.replace("{id}", one).replace("{photo_id}", photo["id"]).replace("{size}", "file")
            )
    for address in ("/", "/concepts", f"/concepts/{concept['id']}", "/docs", "/healthz", "/static/studio.js"):
        assert alike(client, address) == 200
    assert alike(client, f"/api/v1/weights/{weights}/file") == 200
    assert alike(client, photo["url"]) == 200
    etag = client.get(photo["url"]).headers["etag"]
    assert alike(client, photo["url"], **{"if-none-match": etag}) == 304
    assert alike(client, photo["url"], range="bytes=0-9") == 206
    assert alike(client, "/nothing/here") == 404


def test_a_stream_that_is_only_asked_about_is_not_left_open(
    client: TestClient, app: FastAPI, api: Api, workshop: Workshop, studio: Studio
) -> None:
    job = api.train(api.concept(photos=3)["id"])["id"]
    for _ in range(25):  # more than an owner may have open
        answer = client.head(f"/api/v1/jobs/{job}/events")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
    assert app.state.hub.streams == 0


def test_head_has_no_effects_and_no_route_of_its_own(client: TestClient, app: FastAPI) -> None:
    assert client.head("/api/v1/trainings").status_code == 405
    assert not [path for path, operations in app.openapi()["paths"].items() if "head" in operations]
    assert client.head("/", headers={"Host": "evil.example"}).status_code == 400
