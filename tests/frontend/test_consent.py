"""The pages ask for the consent of a person, keep it, and say beside the tick why they need it."""

from __future__ import annotations

from fastapi.testclient import TestClient

from tests.backend.workshop import Workshop
from tests.frontend.conftest import Api
from tests.frontend.markup import read
from tests.frontend.test_forms import posted

REASON = "Teaching how a person looks needs that person's consent."


def test_the_tick_is_kept_with_the_concept(client: TestClient) -> None:
    fields = {"name": "Ann", "class_noun": "singer of songs", "person": "yes", "consent": "yes"}
    concept = client.get("/api/v1" + posted(client, "/concepts", **fields)).json()
    assert concept["consent"]["basis"] == "agreed"
    thing = client.get("/api/v1" + posted(client, "/concepts", name="Rex", class_noun="dog")).json()
    assert thing["consent"] is None


def test_a_noun_of_a_person_asks_although_nothing_was_ticked(client: TestClient) -> None:
    answer = client.post("/concepts", data={"name": "Ann", "class_noun": "woman"})
    assert answer.status_code == 422
    assert REASON in read(answer.text).words
    assert 'name="person" value="yes" checked' in answer.text
    assert 'aria-describedby="consent-wrong"' in answer.text
    assert client.get("/api/v1/concepts").json()["items"] == []


def test_the_training_form_asks_where_no_consent_was_given(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    concept = f"/concepts/{api.concept('Ann', photos=3, class_noun='woman')['id']}"
    assert 'name="consent"' in client.get(concept).text
    refused = client.post(f"{concept}/train", data={"preset": "quick"})
    assert refused.status_code == 422
    assert REASON in read(refused.text).words
    assert 'aria-describedby="consent-wrong"' in refused.text
    assert posted(client, f"{concept}/train", preset="quick", consent="yes").startswith("/jobs/")
    assert client.get(f"/api/v1{concept}").json()["consent"]["basis"] == "agreed"
    assert 'name="consent"' not in client.get(concept).text
