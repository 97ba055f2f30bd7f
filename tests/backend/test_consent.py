"""A person is taught only with a record of consent: who said so, on what basis, to which sentence, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient

from backend.models import LOCAL_OWNER
from backend.services import consent
from tests.backend.conftest import Api, on_both_databases
from tests.backend.workshop import Workshop


@pytest.mark.parametrize(
    "noun", ["woman", "Man", "old man", "girl in a red dress", "people", "child", "baby", "face", "Person"]
)
def test_nouns_of_people(noun: str) -> None:
    assert consent.shows_person("subject", noun)


@pytest.mark.parametrize(
    "noun", ["dog", "baby elephant", "snowman", "teddy", "human being's dog", "", "moongate"]
)
def test_nouns_of_other_things(noun: str) -> None:
    assert not consent.shows_person("subject", noun)


def test_a_style_is_nobody() -> None:
    assert not consent.shows_person("style", "woman")


@on_both_databases
def test_without_consent_a_person_is_not_taught(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = api.concept("Ann", photos=3, class_noun="woman")
    assert concept["consent"] is None
    answer = client.post("/api/v1/trainings", json={"concepts": [concept["id"]]})
    assert (answer.status_code, answer.json()["code"]) == (422, "consent-required")
    assert answer.json()["errors"][0]["pointer"] == "/concepts/0"
    assert client.get("/api/v1/jobs").json()["items"] == []

    patch = {"consent": {"basis": "guardian"}}
    told = client.patch(f"/api/v1/concepts/{concept['id']}", json=patch).json()["consent"]
    assert (told["given_by"], told["basis"], told["version"]) == (LOCAL_OWNER, "guardian", consent.VERSION)
    assert datetime.now(UTC) - datetime.fromisoformat(told["given_at"]) < timedelta(minutes=5)
    api.train(concept["id"])
    assert client.get("/api/v1/concepts").json()["items"][0]["consent"] == told


def test_consent_that_comes_with_the_concept(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = api.concept("Me", photos=3, class_noun="man", consent={"basis": "self"})
    assert concept["consent"]["basis"] == "self"
    api.train(concept["id"])


@pytest.mark.parametrize("given", [{}, {"basis": "maybe"}, {"basis": "self", "given_at": "2020-01-01"}, True])
def test_a_record_is_not_made_up(client: TestClient, given: object) -> None:
    body = {"name": "Ann", "class_noun": "woman", "consent": given}
    assert client.post("/api/v1/concepts", json=body).status_code == 422
