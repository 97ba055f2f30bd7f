"""Evaluations over HTTP: what is pinned, what is answered, and every reason why not."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.schemas.evaluations import PROMPTS, STYLE_PROMPTS
from tests.backend.conftest import Api
from tests.backend.workshop import JUDGES, Workshop, base

EXAMPLES = ["a photo of {} on the moon", "a photo of {} in snow"]


@pytest.fixture
def shop(workshop: Workshop) -> Workshop:
    """A base with two examples and room for long prompts."""
    workshop.open(base(example_prompts=EXAMPLES, prompt_limit_tokens=120))
    return workshop


def ask(client: TestClient, **body: Any) -> Any:
    return client.post("/api/v1/evaluations", json=body)


def test_an_evaluation_from_request_to_report(client: TestClient, api: Api, shop: Workshop) -> None:
    concept, weights = api.taught(shop)
    accepted = ask(client, weights=[weights])
    assert accepted.status_code == 202
    job = accepted.json()
    assert (job["kind"], job["state"]) == ("evaluate", "queued")
    assert accepted.headers["location"] == f"/api/v1/jobs/{job['id']}"
    spec = shop.job(job["id"]).spec
    assert spec["prompts"] == EXAMPLES
    assert (spec["style_prompts"], spec["num_images"]) == ([], 4)
    assert spec["judges"] == JUDGES.model_dump()
    assert len(spec["concepts"][0]["photos"]) == 3
    made = shop.evaluate()
    done = client.get(f"/api/v1/jobs/{job['id']}").json()
    assert (done["state"], done["result"]["evaluation"]) == ("succeeded", made)
    shown = client.get(f"/api/v1/evaluations/{made}").json()
    assert shown["report"] == done["result"]["report"]
    assert (shown["weights"], shown["job"], shown["base"]) == ([weights], job["id"], "toy")
    [measured] = shown["report"]["concepts"]
    assert measured["concept"] == concept["id"]
    assert set(measured["drift"]) == {
        "value", "deviation", "half_width_95", "per_seed", "raw", "zero", "one",
    }  # fmt: skip
    for query in ("", f"?weights={weights}"):
        assert [one["id"] for one in client.get(f"/api/v1/evaluations{query}").json()["items"]] == [made]
    other = "01900000-0000-7000-8000-000000000000"
    assert client.get(f"/api/v1/evaluations?weights={other}").json()["items"] == []


def test_evaluations_go_with_their_weights(client: TestClient, api: Api, shop: Workshop) -> None:
    _, weights = api.taught(shop)
    ask(client, weights=[weights]).raise_for_status()
    blocked = client.delete(f"/api/v1/weights/{weights}")
    assert (blocked.status_code, blocked.json()["code"]) == (409, "in-use")
    made = shop.evaluate()
    assert client.delete(f"/api/v1/weights/{weights}").status_code == 204
    assert client.get(f"/api/v1/evaluations/{made}").status_code == 404
    assert client.get("/api/v1/evaluations").json()["items"] == []
    gone = ask(client, weights=[weights])
    assert (gone.status_code, gone.json()["code"]) == (404, "not-found")


def test_a_cancelled_evaluation_is_tried_again_while_its_weights_are_there(
    client: TestClient, api: Api, shop: Workshop
) -> None:
    _, weights = api.taught(shop)
    job = ask(client, weights=[weights]).json()
    assert client.post(job["urls"]["cancel"]).json()["state"] == "cancelled"
    again = client.post(f"/api/v1/jobs/{job['id']}/retry")
    assert (again.status_code, again.json()["retry_of"]) == (202, job["id"])
    client.post(again.json()["urls"]["cancel"]).raise_for_status()
    client.delete(f"/api/v1/weights/{weights}").raise_for_status()
    refused = client.post(f"/api/v1/jobs/{job['id']}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "inputs-gone")


def test_a_style_has_prompts_of_its_own(client: TestClient, api: Api, shop: Workshop) -> None:
    concept = api.concept("Ink", photos=3, kind="style", class_noun="")
    api.train(concept["id"])
    job = ask(client, weights=[shop.train()]).json()
    spec = shop.job(job["id"]).spec
    assert (spec["prompts"], spec["style_prompts"]) == ([], list(STYLE_PROMPTS))


def test_a_base_with_a_single_example_gets_the_houses_prompts(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    workshop.open(base(prompt_limit_tokens=120))
    _, weights = api.taught(workshop)
    job = ask(client, weights=[weights]).json()
    assert workshop.job(job["id"]).spec["prompts"] == list(PROMPTS)


LONG = "dog " * 200
TWO = ["a {} on snow", "a {} on moon"]


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"weights": []}, "/weights", "invalid"),
        ({"weights": None}, "/weights", "invalid"),
        ({"prompts": ["a {} in snow"]}, "/prompts", "too-few-prompts"),
        ({"prompts": ["a {} in snow"] * 2}, "/prompts", "too-few-prompts"),
        ({"prompts": ["a {} in snow", "a dog"]}, "/prompts/1", "bad-evaluation-prompt"),
        ({"prompts": ["a {} in snow", "{} and {}"]}, "/prompts/1", "bad-evaluation-prompt"),
        ({"prompts": ["a {} in snow", "{} and @stark"]}, "/prompts/1", "bad-evaluation-prompt"),
        ({"prompts": [f"a {{}} in snow {number}" for number in range(26)]}, "/prompts", "invalid"),
        ({"prompts": ["a {} in snow", LONG + "{}"]}, "/prompts/1", "prompt-too-long"),
        ({"prompts": TWO, "num_images": 1}, "/num_images", "invalid"),
        ({"prompts": TWO, "num_images": 17}, "/num_images", "invalid"),
        ({"prompts": TWO, "seed": 3}, "/seed", "invalid"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_says_where_and_why(
    client: TestClient, api: Api, shop: Workshop, body: dict[str, Any], pointer: str, code: str
) -> None:
    _, weights = api.taught(shop)
    answer = ask(client, **{"weights": [weights], **body})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, code)
    assert [wrong["pointer"] for wrong in problem["errors"]] == [pointer]
    assert client.get("/api/v1/jobs?kind=evaluate").json()["items"] == []


def test_the_same_weights_twice_too_many_and_weights_of_two_bases(
    client: TestClient, api: Api, shop: Workshop
) -> None:
    concept, weights = api.taught(shop)
    assert ask(client, weights=[weights] * 2).status_code == 422
    assert ask(client, weights=[weights] * 5).json()["errors"][0]["pointer"] == "/weights"
    shop.open(base(example_prompts=EXAMPLES), base("second", example_prompts=EXAMPLES))
    api.train(concept["id"], base="second")
    mixed = ask(client, weights=[weights, shop.train()])
    assert (mixed.status_code, mixed.json()["code"]) == (422, "other-base")


def test_a_base_without_judges_is_refused_in_words(client: TestClient, api: Api, shop: Workshop) -> None:
    _, weights = api.taught(shop)
    shop.open(base(judges=None))
    assert client.get("/api/v1/bases").json()["items"][0]["judges"] is None
    answer = ask(client, weights=[weights])
    assert (answer.status_code, answer.json()["code"]) == (422, "no-judges")
    assert "MOONGATE_JUDGES" in answer.json()["detail"]


def test_weights_of_a_base_that_has_changed(client: TestClient, api: Api, shop: Workshop) -> None:
    _, weights = api.taught(shop)
    shop.open(base(hash="ef" * 32))
    answer = ask(client, weights=[weights])
    assert (answer.status_code, answer.json()["code"]) == (422, "base-changed")


def test_a_concept_without_photos_has_nothing_to_compare_with(
    client: TestClient, api: Api, shop: Workshop
) -> None:
    concept, weights = api.taught(shop)
    for photo in client.get(f"/api/v1/concepts/{concept['id']}").json()["photos"][:2]:
        client.delete(f"/api/v1/concepts/{concept['id']}/photos/{photo['id']}").raise_for_status()
    answer = ask(client, weights=[weights])
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "photo-count")
    assert (problem["count"], problem["min"]) == (1, 2)
