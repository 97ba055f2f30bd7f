"""Pictures that wait for a training: how Compose, Queue and the job's page say so."""

from __future__ import annotations

import html
import json
import re

from fastapi.testclient import TestClient

from backend.services import needs
from backend.studio import Studio
from tests.backend.workshop import Workshop
from tests.frontend.conftest import Api
from tests.frontend.markup import read

SENTENCE = "Waits for the training of Stark"


def test_it_is_said_wherever_the_job_is_shown(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    concept = api.concept("Stark", photos=3)
    training = api.train(concept["id"])["id"]
    answer = client.post("/compose", data={"prompt": "a photo of @stark"}, follow_redirects=False)
    assert answer.status_code == 303, read(answer.text).words
    job = answer.headers["location"].partition("job=")[2]
    for address in ("/queue", answer.headers["location"], f"/jobs/{job}"):
        assert SENTENCE in read(client.get(address).text).words, address
    assert "Waits for another job" in read(client.get(f"/jobs/{job}").text).words
    workshop.train()
    with studio.writing() as session:
        needs.settle(session)
    for address in ("/queue", answer.headers["location"], f"/jobs/{job}"):
        words = read(client.get(address).text).words
        assert SENTENCE not in words
        assert "Next in the queue" in words
    assert training


def test_it_is_said_why_it_failed(client: TestClient, api: Api, workshop: Workshop) -> None:
    training = api.train(api.concept("Stark", photos=3)["id"])["id"]
    job = api.generate("@stark")["id"]
    client.post(f"/jobs/{training}/cancel")
    for address in ("/queue", f"/compose?job={job}", f"/jobs/{job}"):
        words = read(client.get(address).text).words
        assert "The training of Stark that this job waited for was cancelled." in words


def test_a_concept_can_be_put_into_a_prompt_while_it_is_taught(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    api.train(api.concept("Stark", photos=3)["id"])
    api.concept("Nobody", photos=3)
    found = re.search(r'data-concepts="([^"]*)"', client.get("/compose").text)
    assert found is not None
    assert [each["token"] for each in json.loads(html.unescape(found[1]))] == ["stark"]


def test_a_retry_on_a_full_disk_is_refused_as_any_new_work(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    training = api.train(api.concept("Stark", photos=3)["id"])["id"]
    client.post(f"/jobs/{training}/cancel")
    studio.storage.low_water_bytes = 1 << 60
    before = len(client.get("/api/v1/jobs").json()["items"])
    answer = client.post(f"/api/v1/jobs/{training}/retry")
    assert (answer.status_code, answer.json()["code"]) == (507, "storage-full")
    assert client.post(f"/jobs/{training}/retry").status_code == 507
    assert len(client.get("/api/v1/jobs").json()["items"]) == before
    studio.storage.low_water_bytes = 0
    assert client.post(f"/api/v1/jobs/{training}/retry").status_code == 202
