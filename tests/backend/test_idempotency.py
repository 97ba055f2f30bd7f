"""The same POST sent twice does its work once, however parallel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.errors import Conflict
from backend.models import LOCAL_OWNER, IdempotencyKey, now
from backend.services import idempotency
from backend.studio import Studio
from tests.backend.conftest import Api, on_both_databases
from tests.backend.pictures import photo
from tests.backend.workshop import Workshop

pytestmark = on_both_databases

BODY = {"name": "Stark", "class_noun": "dog"}


def test_a_repeated_post_gets_the_same_answer(client: TestClient) -> None:
    answers = [client.post("/api/v1/concepts", json=BODY, headers={"idempotency-key": "k"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201] * 3
    assert answers[0].content == answers[1].content == answers[2].content
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true"]
    assert answers[1].headers["location"] == answers[0].headers["location"]
    assert len(client.get("/api/v1/concepts").json()["items"]) == 1


def test_another_body_or_path_is_a_mismatch(client: TestClient, workshop: Workshop) -> None:
    key = {"idempotency-key": "k"}
    client.post("/api/v1/concepts", json=BODY, headers=key)
    for path, body in (("concepts", {**BODY, "name": "Rex"}), ("generations", {"prompt": "a dog"})):
        answer = client.post(f"/api/v1/{path}", json=body, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency-mismatch")


def test_parallel_posts_make_one_job(client: TestClient, workshop: Workshop) -> None:
    def post(_: int) -> int:
        answer = client.post(
            "/api/v1/generations", json={"prompt": "a dog"}, headers={"idempotency-key": "k"}
        )
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(post, range(16)))
    assert statuses <= {202, 409}
    assert len(client.get("/api/v1/jobs").json()["items"]) == 1
    assert post(0) == 202


def test_a_failed_request_may_be_tried_again(client: TestClient) -> None:
    key = {"idempotency-key": "k"}
    assert client.post("/api/v1/concepts", json={"name": "Stark"}, headers=key).status_code == 422
    assert client.post("/api/v1/concepts", json=BODY, headers=key).status_code == 201


def test_uploads_compare_by_content_not_by_boundary(client: TestClient, api: Api) -> None:
    url = f"/api/v1/concepts/{api.concept()['id']}/photos"
    key = {"idempotency-key": "k"}
    first, again = (client.post(url, files=[("files", ("a.jpg", photo(1)))], headers=key) for _ in range(2))
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = client.post(url, files=[("files", ("a.jpg", photo(2)))], headers=key)
    assert other.json()["code"] == "idempotency-mismatch"


def test_a_claim_in_flight_is_409_and_lapses(client: TestClient, studio: Studio) -> None:
    idempotency.claim(studio.database, LOCAL_OWNER, "k", "body")
    with pytest.raises(Conflict):
        idempotency.claim(studio.database, LOCAL_OWNER, "k", "body")
    with studio.writing() as session:
        session.execute(update(IdempotencyKey).values(expires_at=now() - timedelta(seconds=1)))
    assert idempotency.claim(studio.database, LOCAL_OWNER, "k", "body").answer is None


def test_a_lapsed_claim_cannot_settle(client: TestClient, studio: Studio) -> None:
    slow = idempotency.claim(studio.database, LOCAL_OWNER, "k", "body")
    with studio.writing() as session:
        session.execute(update(IdempotencyKey).values(expires_at=now() - timedelta(seconds=1)))
    idempotency.claim(studio.database, LOCAL_OWNER, "k", "body")
    with pytest.raises(Conflict), studio.writing() as session:
        idempotency.settle(session, slow, 201, {}, b"{}")


def test_prefer_wait_holds_until_the_end(client: TestClient, workshop: Workshop) -> None:
    body = {"prompt": "a dog", "num_images": 1}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/api/v1/generations", json=body, headers={"prefer": "wait=20"})
        while not client.get("/api/v1/jobs", params={"state": "queued"}).json()["items"]:
            pass
        workshop.draw()
        answer = waiting.result(timeout=20)
    assert (answer.status_code, answer.json()["state"]) == (202, "succeeded")
    assert answer.headers["preference-applied"] == "wait=20"
    short = client.post("/api/v1/generations", json=body, headers={"prefer": "respond-async, wait=1"})
    assert short.json()["state"] == "queued"
