"""Concepts: tokens, samples, and what a deletion takes along."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from backend.models import ConceptWeights, Outbox
from backend.services import samples
from backend.services.concepts import slug
from backend.studio import Studio
from tests.backend.conftest import Api, on_both_databases
from tests.backend.pictures import photo
from tests.backend.workshop import Workshop


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("Stark", "stark"),
        ("Mój Pies", "moj-pies"),
        ("3 cats", "c-3-cats"),
        ("狗", "c"),
        ("A  b!", "a-b"),
        ("x" * 80, "x" * 36),
    ],
)
def test_a_token_from_a_name(name: str, token: str) -> None:
    assert slug(name) == token


def test_tokens_are_unique_until_a_concept_is_deleted(client: TestClient, api: Api) -> None:
    first = api.concept("Stark")
    assert api.concept("Stark")["token"] == "stark-2"
    taken = client.post("/api/v1/concepts", json={"name": "x", "class_noun": "dog", "token": "stark"})
    assert (taken.status_code, taken.json()["code"]) == (409, "token-taken")
    assert client.delete(f"/api/v1/concepts/{first['id']}").status_code == 204
    assert api.concept("x", token="stark")["token"] == "stark"


def test_a_style_needs_no_noun(api: Api) -> None:
    assert api.concept("Ink", kind="style", class_noun="")["class_noun"] == ""


def test_hostile_names_are_stored_as_text(client: TestClient, api: Api) -> None:
    name = '"><svg onload=alert(1)>'
    made = api.concept(name)
    assert client.get(f"/api/v1/concepts/{made['id']}").json()["name"] == name


def purges(studio: Studio) -> set[str]:
    with studio.reading() as session:
        return set(session.scalars(select(Outbox.ref).where(Outbox.topic == "purge")))


@on_both_databases
def test_deleting_asks_first_and_then_takes_everything(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    concept, weights = api.taught(workshop)
    api.generate("@stark", num_images=2)
    images = workshop.draw()
    waiting = api.generate("@stark again")["id"]
    url = f"/api/v1/concepts/{concept['id']}"
    refused = client.delete(url)
    assert (refused.status_code, refused.json()["code"]) == (409, "has-dependants")
    found = refused.json()["dependants"]
    assert (found["weights"], set(found["images"]), found["jobs"]) == ([weights], set(images), [waiting])
    assert client.get(url).status_code == 200

    stored = set(studio.storage.keys())
    assert client.delete(url, params={"cascade": "true"}).status_code == 204
    for path in (url, f"/api/v1/weights/{weights}", f"/api/v1/images/{images[0]}"):
        assert client.get(path).status_code == 404
    assert client.get(f"/api/v1/jobs/{waiting}").json()["state"] == "cancelled"
    assert client.get("/api/v1/images").json()["items"] == []
    assert purges(studio) == stored


def test_photos_are_locked_while_a_training_uses_them(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    concept = api.concept(photos=3)
    job = api.train(concept["id"])
    url = f"/api/v1/concepts/{concept['id']}/photos"
    first = client.get(url).json()["items"][0]["id"]
    for answer in (client.post(url, files=[("files", ("a.jpg", photo(9)))]), client.delete(f"{url}/{first}")):
        assert (answer.status_code, answer.json()["code"]) == (409, "training-locked")
    client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"{url}/{first}").status_code == 204
    assert client.get(f"{url}/{first}/file").status_code == 404


def test_weights_in_use_stay_and_then_go_alone(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    _, weights = api.taught(workshop)
    api.generate("@stark", num_images=1)
    assert client.delete(f"/api/v1/weights/{weights}").json()["code"] == "in-use"
    [image] = workshop.draw()
    assert client.delete(f"/api/v1/weights/{weights}").status_code == 204
    assert client.get(f"/api/v1/images/{image}").status_code == 200
    with studio.reading() as session:
        assert session.get_one(ConceptWeights, weights).storage_key in purges(studio)


def test_files_are_private_revalidated_and_sandboxed(client: TestClient, api: Api) -> None:
    [kept] = api.photos(api.concept()["id"], photo(1))["items"]
    answer = client.get(kept["thumbnail_url"])
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["cache-control"].startswith("private")
    again = client.get(kept["thumbnail_url"], headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    part = client.get(kept["url"], headers={"range": "bytes=0-9"})
    assert (part.status_code, len(part.content)) == (206, 10)


def test_every_shipped_sample_set_becomes_a_concept_by_the_same_road(client: TestClient) -> None:
    listed = client.get("/api/v1/samples").json()["items"]
    assert len(listed) == len(samples.sets())
    for one in listed[:2]:
        assert client.get(one["photos"][0]).headers["content-type"] == "image/webp"
        made = client.post(f"/api/v1/samples/{one['slug']}")
        assert made.status_code == 201, made.text
        assert len(made.json()["photos"]) == len(one["photos"])
    for path in ("/api/v1/samples/nothing", "/api/v1/samples/..%2f..%2fsettings.py"):
        assert client.post(path).status_code in {404, 405}
    assert client.get("/api/v1/samples/nothing/photos/samples.json").status_code == 404
