"""T2: pictures of a concept that is still being taught wait for it, and go on or end in words when it has ended."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.errors import NotFound
from backend.models import LOCAL_OWNER, ConceptWeights, Job, JobNeed, now
from backend.schemas.executor import Unit
from backend.schemas.generations import GenerateSpec
from backend.services import jobs, leases, needs
from backend.studio import Studio
from tests.backend.conftest import Api, on_both_databases
from tests.backend.workshop import Workshop

pytestmark = on_both_databases


def asked(api: Api, name: str = "Stark", **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A training that waits, and pictures of what it teaches."""
    concept = api.concept(name, photos=3)
    training = api.train(concept["id"], **fields)
    return training, api.generate(f"a photo of @{concept['token']}", num_images=2, seed=5)


def shown(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = client.get(f"/api/v1/jobs/{job['id']}").json()
    return answer


def settled(studio: Studio) -> int:
    with studio.writing() as session:
        return needs.settle(session)


def test_pictures_wait_and_are_drawn_with_what_was_learned(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    training, job = asked(api)
    assert (job["state"], job["queue_position"]) == ("blocked", None)
    assert job["waits_for"] == [{"job": training["id"], "what": "training of Stark"}]
    assert settled(studio) == 0
    weights = workshop.train()
    assert shown(client, job)["state"] == "blocked"
    assert settled(studio) == 1
    after = shown(client, job)
    assert (after["state"], after["waits_for"]) == ("queued", [])
    row = workshop.job(job["id"])
    assert [used["file"]["id"] for used in row.spec["weights"]] == [weights]
    assert (row.spec["text"], row.spec["seed"]) == ("a photo of <stark> dog", 5)
    with studio.reading() as session:
        assert row.spec["weights"][0]["file"]["sha256"] == session.get_one(ConceptWeights, weights).sha256
        states = [e.data["state"] for e in jobs.events_after(session, LOCAL_OWNER, [job["id"]], {})]
    assert states == ["blocked", "queued"]
    assert len(workshop.draw()) == 2
    assert shown(client, job)["state"] == "succeeded"
    assert settled(studio) == 0


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_what_it_waited_for_does_not_come(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio, end: str
) -> None:
    training, job = asked(api)
    if end == "cancelled":
        client.post(f"/api/v1/jobs/{training['id']}/cancel").raise_for_status()
    else:
        held = workshop.claim()
        error = {"code": "internal", "retryable": False, "message": "x", "detail_id": "x"}
        with studio.writing() as session:
            assert leases.fail(session, Unit(job=held.id, fence=held.fence), error, 3) == "failed"
    after = shown(client, job)
    assert after["state"] == "failed"
    word = "was cancelled" if end == "cancelled" else "failed"
    assert after["error"] == {
        "code": "dependency",
        "retryable": True,
        "message": f"The training of Stark that this job waited for {word}.",
    }
    answer = client.post(f"/api/v1/jobs/{job['id']}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "dependency-failed")
    again = client.post(f"/api/v1/jobs/{training['id']}/retry").json()
    waiting = client.post(f"/api/v1/jobs/{job['id']}/retry").json()
    assert (waiting["state"], waiting["waits_for"][0]["job"]) == ("blocked", again["id"])
    workshop.train()
    assert settled(studio) == 1
    assert shown(client, waiting)["state"] == "queued"


def test_a_waiting_job_is_cancelled_at_once(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    _, job = asked(api)
    assert client.post(f"/api/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    workshop.train()
    assert settled(studio) == 0
    assert shown(client, job)["state"] == "cancelled"


def test_weights_deleted_in_between_are_told(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    _, job = asked(api)
    weights = workshop.train()
    with studio.writing() as session:
        session.get_one(ConceptWeights, weights).deleted_at = now()
    assert settled(studio) == 1
    after = shown(client, job)
    assert (after["state"], after["error"]["code"]) == ("failed", "input_invalid")
    assert "deleted" in after["error"]["message"]


def test_which_training_is_meant(client: TestClient, api: Api, workshop: Workshop) -> None:
    one, two = api.concept("One", photos=3), api.concept("Two", photos=3)
    api.train(one["id"])
    newest = api.train(one["id"])
    joint = api.train(one["id"], two["id"])
    cancelled = api.train(two["id"])
    client.post(f"/api/v1/jobs/{cancelled['id']}/cancel").raise_for_status()
    both = api.generate("@one beside @two")
    assert [each["job"] for each in both["waits_for"]] == [joint["id"]]
    assert both["waits_for"][0]["what"] == "training of One and Two"
    assert newest["id"] != joint["id"]
    apart = api.concept("Apart", photos=3)
    separately = api.train(apart["id"])
    mixed = api.generate("@one beside @apart")
    assert {each["job"] for each in mixed["waits_for"]} == {joint["id"], separately["id"]}
    fresh = client.post("/api/v1/generations", json={"prompt": f"@{api.concept('Fresh')['token']}"})
    assert fresh.json()["code"] == "untrained-token"


def test_what_was_taught_already_does_not_wait(api: Api, workshop: Workshop) -> None:
    concept, weights = api.taught(workshop)
    api.train(concept["id"])
    job = api.generate("@stark")
    assert job["state"] == "queued"
    assert [used["file"]["id"] for used in workshop.job(job["id"]).spec["weights"]] == [weights]


def test_the_box_knows_that_it_is_being_taught(client: TestClient, api: Api, workshop: Workshop) -> None:
    asked(api)
    told = client.post("/api/v1/prompts/check", json={"prompt": "@stark and @nobody"}).json()
    assert (told["awaited"], told["unknown"], told["text"]) == (
        ["stark"],
        ["nobody"],
        "<stark> dog and @nobody",
    )


def test_forgetting_the_concept_ends_what_waits(client: TestClient, api: Api, workshop: Workshop) -> None:
    training, job = asked(api)
    concept = training["request"]["concepts"][0]
    assert client.delete(f"/api/v1/concepts/{concept}").json()["dependants"]["jobs"] == [training["id"]]
    assert client.delete(f"/api/v1/concepts/{concept}?cascade=true").status_code == 204
    assert shown(client, job)["state"] == "failed"


def test_needs_are_the_owners_and_there_before(api: Api, workshop: Workshop, studio: Studio) -> None:
    """So no chain of them ever comes back to where it began."""
    _, job = asked(api)
    spec = GenerateSpec.model_validate(workshop.job(job["id"]).spec)
    told: dict[str, Any] = {
        "kind": "generate", "queue": "gen_any", "request": {}, "spec": spec, "base": "toy", "base_hash": "ab" * 32,
    }  # fmt: skip
    for owner, needed in ((LOCAL_OWNER, "01a00000-0000-7000-8000-000000000000"), ("somebody", job["id"])):
        with pytest.raises(NotFound), studio.writing() as session:
            jobs.enqueue(session, owner_id=owner, needs=[needed], **told)
    with studio.writing() as session:
        chained = jobs.enqueue(session, owner_id=LOCAL_OWNER, needs=[job["id"]], **told).id
    with studio.reading() as session:
        assert session.query(JobNeed).filter_by(job_id=chained).one().needs_id == job["id"]
    with studio.writing() as session:
        jobs.request_cancel(session, LOCAL_OWNER, job["id"])
    with studio.reading() as session:
        row = session.get_one(Job, chained)
    assert (row.state, row.error and row.error["code"]) == ("failed", "dependency")


def test_a_need_that_ended_unseen_is_found_by_the_sweep(api: Api, workshop: Workshop, studio: Studio) -> None:
    """As if the training had been cancelled by a process that did not know of jobs that wait."""
    training, job = asked(api)
    with studio.writing() as session:
        row = session.get_one(Job, training["id"])
        row.state, row.finished_at = "cancelled", now()
    assert settled(studio) == 1
    assert workshop.job(job["id"]).state == "failed"


def test_waiting_jobs_count_towards_the_limit(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    asked(api)
    object.__setattr__(studio.settings, "max_queued_jobs", 2)
    answer = client.post("/api/v1/generations", json={"prompt": "@stark"})
    assert (answer.status_code, answer.json()["code"]) == (429, "too-many-jobs")
