"""Ids, lists and repeated requests: the rows in-I, in-L, in-E1, in-C3, in-C4 of the bad input table."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.identifiers import new_id
from backend.models import Base, Owner
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.native_weights import native
from tests.backend.workshop import Workshop

MISSING = "01900000-0000-7000-8000-000000000000"
STRANGE = [
    "x",
    MISSING.upper().replace("0", "A", 1),
    "{" + MISSING + "}",
    "01900000-0000-4000-8000-000000000000",
    "1" * 10_000,
    "..%2f..%2fetc",
    "%2e%2e",
    "a%00b",
    str(2**63),
    f"{MISSING}%0a",
]
ITEMS = [
    ("GET", "/concepts/{}", None),
    ("PATCH", "/concepts/{}", {"name": "x"}),
    ("DELETE", "/concepts/{}", None),
    ("GET", "/concepts/{}/photos", None),
    ("GET", "/jobs/{}", None),
    ("GET", "/jobs/{}/events", None),
    ("GET", "/jobs/{}/previews/0", None),
    ("POST", "/jobs/{}/cancel", None),
    ("POST", "/jobs/{}/finish", None),
    ("POST", "/jobs/{}/retry", None),
    ("GET", "/events?jobs={}", None),
    ("GET", "/weights/{}", None),
    ("GET", "/weights/{}/file", None),
    ("GET", "/weights/{}/analysis", None),
    ("DELETE", "/weights/{}", None),
    ("GET", "/evaluations/{}", None),
    ("GET", "/images/{}", None),
    ("GET", "/images/{}/file", None),
    ("GET", "/images/{}/thumbnail", None),
    ("PATCH", "/images/{}", {"starred": True}),
    ("DELETE", "/images/{}", None),
]


def ask(client: TestClient, method: str, path: str, body: Any) -> Any:
    return (
        client.request(method, f"/api/v1{path}", json=body)
        if body
        else client.request(method, f"/api/v1{path}")
    )


@pytest.mark.parametrize(("method", "path", "body"), ITEMS)
def test_strange_ids_are_as_missing_as_missing_ones(
    client: TestClient, method: str, path: str, body: Any
) -> None:
    known = ask(client, method, path.format(MISSING), body)
    assert known.status_code == 404, known.text
    expected = {name: value for name, value in known.json().items() if name not in ("instance", "request_id")}
    for strange in STRANGE:
        answer = ask(client, method, path.format(strange), body)
        found = {
            name: value for name, value in answer.json().items() if name not in ("instance", "request_id")
        }
        if "?" in path and (len(strange) > 4000 or "%00" in strange):  # a parameter that cannot be read
            assert answer.status_code == 422
        elif answer.status_code == 405:  # an encoded slash leads to another address
            assert "%2" in strange
        else:
            assert (answer.status_code, found) == (404, expected)


@pytest.fixture
def foreign(client: TestClient, api: Api, workshop: Workshop, studio: Studio) -> dict[str, str]:
    """One of everything, and then it all belongs to somebody else."""
    concept, weights = api.taught(workshop)
    job = api.generate("a photo of @stark", num_images=1)
    [image] = workshop.draw()
    photo = client.get(f"/api/v1/concepts/{concept['id']}").json()["photos"][0]["id"]
    client.post("/api/v1/evaluations", json={"weights": [weights]}).raise_for_status()
    evaluation = workshop.evaluate()
    somebody = new_id()
    with studio.writing() as session:
        session.add(Owner(id=somebody, name="somebody else"))
        session.flush()
        for table in Base.metadata.sorted_tables:
            if "owner_id" in table.columns:
                session.execute(update(table).values(owner_id=somebody))
    return {"concepts": concept["id"], "weights": weights, "jobs": job["id"], "images": image, "photo": photo,
            "evaluations": evaluation}  # fmt: skip


def test_every_route_treats_a_foreign_id_as_missing(
    client: TestClient, app: FastAPI, foreign: dict[str, str]
) -> None:
    """Swept from the OpenAPI document, so that a new route is covered on the day it appears."""
    bodies = {
        "update_concept": {"name": "x"},
        "edit_photo": {"rotate": 90},
        "update_image": {"starred": True},
    }
    swept = 0
    for path, operations in app.openapi()["paths"].items():
        noun = path.split("/")[3]
        if "{id}" not in path:
            continue
        real = path.replace("{id}", foreign[noun]).replace("{photo_id}", foreign["photo"])
        real = real.replace("{number}", "0").replace("{size}", "file")
        for method, operation in operations.items():
            name = operation["operationId"]
            if name == "add_photos":
                answer = client.post(real, files=[("files", ("a.jpg", b"x"))])
            else:
                answer = ask(client, method.upper(), real.removeprefix("/api/v1"), bodies.get(name))
            assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), name
            swept += 1
    assert swept >= 20


def test_foreign_ids_in_bodies_and_filters(client: TestClient, foreign: dict[str, str]) -> None:
    training = client.post("/api/v1/trainings", json={"concepts": [foreign["concepts"]]})
    assert training.status_code == 404
    sent = {"files": {"file": ("x.safetensors", native())}, "data": {"concept": foreign["concepts"]}}
    assert client.post("/api/v1/weights/import", **sent).status_code == 404
    body = {"prompt": "a dog", "weights": [{"id": foreign["weights"]}]}
    assert client.post("/api/v1/generations", json=body).status_code == 404
    body = {"weights": foreign["weights"], "rank": 1}
    assert client.post("/api/v1/compressions", json=body).status_code == 404
    assert client.post("/api/v1/evaluations", json={"weights": [foreign["weights"]]}).status_code == 404
    for path in ("concepts", "jobs", "weights", "images", "evaluations"):
        assert client.get(f"/api/v1/{path}").json()["items"] == []
    for name in ("concept", "weights", "job"):
        given = {
            name: foreign["concepts" if name == "concept" else "weights" if name == "weights" else "jobs"]
        }
        assert client.get("/api/v1/images", params=given).json()["items"] == []


LISTS = ["concepts", "jobs", "weights", "images", "evaluations"]
QUERIES = [
    "limit=0", "limit=-1", "limit=201", "limit=abc", "limit=1&limit=2", "limit=1e3", "limit=", "sort=unknown",
    "order=junk", "cursor=junk", f"cursor={MISSING.upper()}x", "cursor=" + "x" * 5000, "limit=5&extra=1",
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("path", LISTS)
def test_wrong_list_parameters(client: TestClient, path: str, query: str) -> None:
    answer = client.get(f"/api/v1/{path}?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_lists_are_keyset_pages(client: TestClient, api: Api) -> None:
    made = [api.concept(f"Dog {number}")["id"] for number in range(5)]
    first = client.get("/api/v1/concepts", params={"limit": 2}).json()
    second = client.get("/api/v1/concepts", params={"limit": 2, "cursor": first["next"]}).json()
    third = client.get("/api/v1/concepts", params={"limit": 2, "cursor": second["next"]}).json()
    found = [item["id"] for part in (first, second, third) for item in part["items"]]
    assert found == made[::-1]
    assert third["next"] is None


@pytest.mark.parametrize("q", ["%", "_", "50%", "a_b", "\\", "'; DROP TABLE images;--", "(a+)+$", "SNOW"])
def test_search_is_literal(client: TestClient, api: Api, workshop: Workshop, q: str) -> None:
    prompts = ["50% off snow", "a_b dog", "back\\slash", "it's '; DROP TABLE images;-- fine", "(a+)+$ red"]
    for prompt in prompts:
        api.generate(prompt, num_images=1)
        workshop.draw()
    answer = client.get("/api/v1/images", params={"q": q})
    assert answer.status_code == 200
    found = {item["recipe"]["prompt"] for item in answer.json()["items"]}
    assert found == {prompt for prompt in prompts if q.lower() in prompt.lower()}


def test_a_search_that_is_too_long(client: TestClient) -> None:
    assert client.get("/api/v1/images", params={"q": "x" * 10_000}).status_code == 422


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    "given", ["junk", "-1", "{id}:-1", "{id}:x", MISSING + ":1", "1", "{id}:" + "9" * 40]
)
def test_event_ids_that_are_not_of_this_stream(client: TestClient, api: Api, given: str) -> None:
    job = api.generate("a dog")
    for url in (job["urls"]["events"], f"/api/v1/events?jobs={job['id']}"):
        answer = client.get(url, headers={"last-event-id": given.format(id=job["id"])})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-event-id")


@pytest.mark.usefixtures("workshop")
def test_cancel_is_idempotent_and_retry_makes_a_new_job(client: TestClient, api: Api) -> None:
    job = api.generate("a dog")
    cancel, retry = f"/api/v1/jobs/{job['id']}/cancel", f"/api/v1/jobs/{job['id']}/retry"
    assert client.post(retry).status_code == 409
    for _ in range(5):
        answer = client.post(cancel)
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    again = client.post(retry)
    assert again.status_code == 202
    assert again.json()["retry_of"] == job["id"]
    assert again.headers["location"] == f"/api/v1/jobs/{again.json()['id']}"


def test_cancelling_or_finishing_what_has_ended(client: TestClient, api: Api, workshop: Workshop) -> None:
    job = api.generate("a dog", num_images=1)
    workshop.draw()
    assert client.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 409
    assert client.post(f"/api/v1/jobs/{job['id']}/finish").status_code == 409


def test_delete_twice(client: TestClient, api: Api, workshop: Workshop) -> None:
    api.generate("a dog", num_images=1)
    [image] = workshop.draw()
    for path in (f"/api/v1/concepts/{api.concept()['id']}", f"/api/v1/images/{image}"):
        assert [client.delete(path).status_code for _ in range(2)] == [204, 404]


def test_if_match(client: TestClient, api: Api) -> None:
    url = f"/api/v1/concepts/{api.concept()['id']}"
    tag = client.get(url).headers["etag"]
    assert client.patch(url, json={"name": "Two"}, headers={"if-match": tag}).status_code == 200
    stale = client.patch(url, json={"name": "Three"}, headers={"if-match": tag})
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition-failed")
    assert client.patch(url, json={"name": "Four"}).json()["name"] == "Four"
    fresh = client.get(url).headers["etag"]
    assert client.get(url, headers={"if-none-match": fresh}).status_code == 304
