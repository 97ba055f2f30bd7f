"""A job is tried again with the inputs it had; when one of them is gone, the answer says so at once."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from backend.models import Job
from backend.studio import Studio
from tests.backend.conftest import Api, on_both_databases
from tests.backend.workshop import Workshop, base

pytestmark = on_both_databases


def retried(client: TestClient, job_id: str) -> tuple[int, dict[str, object]]:
    answer = client.post(f"/api/v1/jobs/{job_id}/retry")
    return answer.status_code, answer.json()


def refused(client: TestClient, job_id: str) -> dict[str, object]:
    """The problem's ``gone``; nothing was enqueued."""
    before = len(client.get("/api/v1/jobs").json()["items"])
    status, problem = retried(client, job_id)
    assert (status, problem["code"]) == (409, "inputs-gone"), problem
    assert len(client.get("/api/v1/jobs").json()["items"]) == before
    return problem["gone"]  # type: ignore[return-value]


def cancelled_training(client: TestClient, api: Api) -> tuple[str, str, list[str]]:
    """Job, concept and photos."""
    concept = api.concept(photos=4)["id"]
    photos = [each["id"] for each in client.get(f"/api/v1/concepts/{concept}/photos").json()["items"]]
    job = api.train(concept)["id"]
    client.post(f"/api/v1/jobs/{job}/cancel").raise_for_status()
    return job, concept, photos


def test_a_training_is_tried_again_while_its_inputs_are_there(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    job, concept, _ = cancelled_training(client, api)
    client.patch(f"/api/v1/concepts/{concept}", json={"name": "Renamed"}).raise_for_status()
    status, again = retried(client, job)
    assert (status, again["state"], again["retry_of"]) == (202, "queued", job)


def test_a_deleted_concept(client: TestClient, api: Api, workshop: Workshop) -> None:
    job, concept, photos = cancelled_training(client, api)
    assert client.delete(f"/api/v1/concepts/{concept}").status_code == 204
    gone = refused(client, job)
    assert gone == {"concepts": [concept], "photos": photos}


def test_a_deleted_photo(client: TestClient, api: Api, workshop: Workshop) -> None:
    job, concept, photos = cancelled_training(client, api)
    assert client.delete(f"/api/v1/concepts/{concept}/photos/{photos[1]}").status_code == 204
    assert refused(client, job) == {"photos": [photos[1]]}


@pytest.mark.parametrize("whole_concept", [False, True])
def test_deleted_weights(client: TestClient, api: Api, workshop: Workshop, whole_concept: bool) -> None:
    concept, weights = api.taught(workshop)
    job = api.generate("@stark")["id"]
    client.post(f"/api/v1/jobs/{job}/cancel").raise_for_status()
    path = f"concepts/{concept['id']}?cascade=true" if whole_concept else f"weights/{weights}"
    assert client.delete(f"/api/v1/{path}").status_code == 204
    assert refused(client, job) == {"weights": [weights]}


def test_a_base_model_with_other_tensors(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    job = api.generate("a dog")["id"]
    client.post(f"/api/v1/jobs/{job}/cancel").raise_for_status()
    workshop.open(base(hash="cd" * 32))
    status, problem = retried(client, job)
    assert (status, problem["code"]) == (409, "base-changed")
    with studio.reading() as session:
        assert session.query(Job).count() == 1
