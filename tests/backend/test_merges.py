"""``POST /merges``: pinned, published with its parents and every concept, refused with reasons; what depends on it."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.models import ConceptWeights, WeightsConcept
from backend.schemas.executor import Unit
from backend.schemas.merges import MERGE_CARDS
from backend.schemas.merges.requests import MergeSpec
from backend.services import leases
from backend.studio import Studio
from tests.backend.conftest import Api, on_both_databases
from tests.backend.workshop import Workshop, merge_report

MERGES = "/api/v1/merges"


def pair(api: Api, workshop: Workshop) -> tuple[dict[str, Any], str, dict[str, Any], str]:
    """Two concepts, each with weights of its own."""
    return *api.taught(workshop), *api.taught(workshop, "Mia")


def ask(client: TestClient, *weights: str, **fields: Any) -> Any:
    return client.post(MERGES, json={"weights": [{"id": each} for each in weights], **fields})


@on_both_databases
def test_a_merge_makes_weights_of_every_concept(client: TestClient, api: Api, workshop: Workshop) -> None:
    stark, first, mia, second = pair(api, workshop)
    body = {"weights": [{"id": first}, {"id": second, "scale": 0.5}], "params": {"captions": 200}}
    answer = client.post(MERGES, json=body)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (job["kind"], job["state"]) == ("merge", "queued")
    spec = MergeSpec.model_validate(workshop.job(job["id"]).spec)
    assert [(each.file.id, each.scale, each.tokens) for each in spec.weights] == [
        (first, 1.0, ["stark"]),
        (second, 0.5, ["mia"]),
    ]
    assert (spec.method, spec.params["captions"], spec.params["padding"]) == ("closed-form", 200, 4)
    assert [(each.id, each.token) for each in spec.concepts] == [(stark["id"], "stark"), (mia["id"], "mia")]
    assert spec.renames == {}
    made = workshop.merge()
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["result"] == {"weights": made}
    new = client.get(f"/api/v1/weights/{made}").json()
    assert (new["parents"], new["job"], new["manifest"]["merge"]) == (
        [first, second],
        job["id"],
        "closed-form",
    )
    assert sorted(new["concepts"]) == sorted([stark["id"], mia["id"]])
    assert new["report"]["merge"]["verified"]
    assert "sketch" not in str(new)
    for concept in (stark, mia):
        newest = client.get(f"/api/v1/concepts/{concept['id']}").json()["weights"][0]
        assert (newest["id"], newest["merge"], len(newest["concepts"])) == (made, "closed-form", 2)
    drawn = workshop.job(api.generate("@stark and @mia")["id"])
    assert [used["file"]["id"] for used in drawn.spec["weights"]] == [made]
    assert drawn.spec["text"] == "<stark> dog and <mia> dog"


def test_a_merge_that_draws_waits_for_a_device(client: TestClient, api: Api, workshop: Workshop) -> None:
    _, first, _, second = pair(api, workshop)
    for method, queue in (("linear", "cpu"), ("gradient-fusion", "train_any")):
        job = ask(client, first, second, method=method).json()
        assert workshop.job(job["id"]).queue == queue


def test_tokens_that_clash_are_renamed_and_found_again(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    """A concept may have got another token since it was taught, so another one has the first by now."""
    old, first = api.taught(workshop)
    client.patch(f"/api/v1/concepts/{old['id']}", json={"token": "before"}).raise_for_status()
    _, second = api.taught(workshop)
    job = ask(client, first, second).json()
    spec = workshop.job(job["id"]).spec
    assert spec["renames"] == {second: {"stark": "stark-2"}}
    assert [each["token"] for each in spec["concepts"]] == ["stark", "stark-2"]
    made = workshop.merge()
    with studio.reading() as session:
        links = {link.token for link in session.query(WeightsConcept).filter_by(weights_id=made)}
    assert links == {"stark", "stark-2"}
    spec = workshop.job(api.generate("@before and @stark")["id"]).spec
    assert spec["text"] == "<stark> dog and <stark-2> dog"


def test_a_merge_that_fails_its_verification_keeps_its_report(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    _, first, _, second = pair(api, workshop)
    job_id = ask(client, first, second).json()["id"]
    job = workshop.claim()
    told = merge_report(MergeSpec.model_validate(job.spec), verified=False, failures=["The words are off."])
    error = {
        "code": "merge_unverified",
        "retryable": False,
        "message": "The words are off.",
        "detail_id": "x",
    }
    with studio.writing() as session:
        report = {"merge": told.model_dump(mode="json")}
        assert leases.fail(session, Unit(job=job.id, fence=job.fence), error, 3, report) == "failed"
    shown = client.get(f"/api/v1/jobs/{job_id}").json()
    assert (shown["state"], shown["error"]["code"]) == ("failed", "merge_unverified")
    assert shown["result"]["report"]["merge"]["failures"] == ["The words are off."]
    assert len(client.get("/api/v1/weights").json()["items"]) == 2


def test_what_a_merge_depends_on(client: TestClient, api: Api, workshop: Workshop) -> None:
    stark, first, mia, second = pair(api, workshop)
    job = ask(client, first, second).json()["id"]
    for concept in (stark, mia):
        found = client.delete(f"/api/v1/concepts/{concept['id']}").json()
        assert job in found["dependants"]["jobs"]
    assert client.delete(f"/api/v1/weights/{first}").json()["code"] == "in-use"
    made = workshop.merge()
    api.generate("@stark and @mia", num_images=1)
    [image] = workshop.draw()
    found = client.delete(f"/api/v1/concepts/{mia['id']}").json()["dependants"]
    assert set(found["weights"]) == {second, made}
    assert found["images"] == [image]
    client.delete(f"/api/v1/concepts/{mia['id']}?cascade=true").raise_for_status()
    assert client.get(f"/api/v1/weights/{made}").status_code == 404
    assert client.get(f"/api/v1/images/{image}").status_code == 404
    left = client.get(f"/api/v1/concepts/{stark['id']}").json()["weights"]
    assert [each["id"] for each in left] == [first]


def test_a_live_merge_goes_with_a_concept(client: TestClient, api: Api, workshop: Workshop) -> None:
    _, first, mia, second = pair(api, workshop)
    job = ask(client, first, second).json()["id"]
    client.delete(f"/api/v1/concepts/{mia['id']}?cascade=true").raise_for_status()
    assert client.get(f"/api/v1/jobs/{job}").json()["state"] == "cancelled"


def test_the_same_request_twice_is_one_job(client: TestClient, api: Api, workshop: Workshop) -> None:
    _, first, _, second = pair(api, workshop)
    body = {"weights": [{"id": first}, {"id": second}]}
    answers = [client.post(MERGES, json=body, headers={"idempotency-key": "k"}) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]


def test_a_forecast_makes_no_job(client: TestClient, api: Api, workshop: Workshop, studio: Studio) -> None:
    _, first, _, second = pair(api, workshop)
    jobs = len(client.get("/api/v1/jobs").json()["items"])
    body = {"weights": [{"id": first}, {"id": second}]}
    answer = client.post(f"{MERGES}/forecast", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "no-sketch")
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/weights/0", "/weights/1"]
    assert "earlier version" in answer.json()["detail"]
    with studio.writing() as session:
        session.execute(update(ConceptWeights).where(ConceptWeights.id == first).values(sketch={}))
        session.execute(update(ConceptWeights).where(ConceptWeights.id == second).values(job_id=None))
    told = [each["detail"] for each in client.post(f"{MERGES}/forecast", json=body).json()["errors"]]
    assert "nothing that a forecast could compare" in told[0]
    assert "imported" in told[1]
    assert len(client.get("/api/v1/jobs").json()["items"]) == jobs


def test_every_merge_is_listed(client: TestClient) -> None:
    listed = client.get("/api/v1/merge-methods").json()["items"]
    assert [each["name"] for each in listed] == list(MERGE_CARDS)
    for each in listed:
        assert each["params"]["additionalProperties"] is False
        assert all("default" in field for field in each["params"]["properties"].values())
