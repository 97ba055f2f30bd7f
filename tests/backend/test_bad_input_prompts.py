"""Prompts: the rows in-P of the bad input table, and what tokens resolve to."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.services import workers
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop, base

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ""}, "empty-prompt", "/prompt"),
    ({"prompt": "   "}, "empty-prompt", "/prompt"),
    ({"prompt": "x" * 2001}, "invalid", "/prompt"),
    ({"prompt": "x" * 900_000}, "invalid", "/prompt"),
    ({"prompt": "snow " * 60}, "prompt-too-long", "/prompt"),
    ({"prompt": "(" * 1000 + "dog" + ")" * 900}, "prompt-too-long", "/prompt"),
    ({"prompt": "dog", "negative_prompt": "snow " * 60}, "prompt-too-long", "/negative_prompt"),
    ({"prompt": "dog\u0000"}, "invalid", "/prompt"),
    ({"prompt": "a photo of @nobody"}, "unknown-token", "/prompt"),
    ({"prompt": "dog", "negative_prompt": "@nobody"}, "token-in-negative", "/negative_prompt"),
    ({"prompt": "dog", "num_images": 0}, "invalid", "/num_images"),
    ({"prompt": "dog", "num_images": 65}, "invalid", "/num_images"),
    ({"prompt": "dog", "width": 60}, "bad-size", "/width"),
    ({"prompt": "dog", "height": 4096}, "bad-size", "/height"),
    ({"prompt": "dog", "scheduler": "magic"}, "unknown-scheduler", "/scheduler"),
    ({"prompt": "dog", "guidance_scale": 0.5}, "invalid", "/guidance_scale"),
    ({"prompt": "dog", "base": "sd99"}, "unknown-base", "/base"),
    ({"prompt": "dog", "weights": [{"id": "x"}]}, "invalid", "/weights/0/id"),
    ({"prompt": "dog", "image_url": "http://127.0.0.1/"}, "invalid", "/image_url"),
]


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    ("body", "code", "pointer"), WRONG, ids=[f"{code}-{n}" for n, (_, code, _) in enumerate(WRONG)]
)
def test_wrong_generations(client: TestClient, body: dict[str, Any], code: str, pointer: str) -> None:
    answer = client.post("/api/v1/generations", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert client.get("/api/v1/jobs").json()["items"] == []


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    "prompt",
    [
        "dog \U0001f319",
        "كلب on moon",
        "d\u200bog",
        "e\u0301\u0301\u0301",
        "狗",
        "<script>alert(1)</script>",
        "a@b.c dog",
    ],
)
def test_any_script_round_trips_after_nfc(client: TestClient, api: Api, prompt: str) -> None:
    job = api.generate(prompt)
    shown = client.get(f"/api/v1/jobs/{job['id']}").json()
    assert unicodedata.normalize("NFC", shown["request"]["prompt"]) == unicodedata.normalize("NFC", prompt)


def test_a_long_prompt_says_by_how_much(client: TestClient, workshop: Workshop) -> None:
    answer = client.post("/api/v1/generations", json={"prompt": "snow " * 60}).json()
    assert (answer["tokens"], answer["limit"]) == (62, 40)


def test_the_box_counts_along(client: TestClient, api: Api, workshop: Workshop) -> None:
    api.taught(workshop)
    report = client.post("/api/v1/prompts/check", json={"prompt": "a photo of @Stark, @nobody"}).json()
    assert report["text"] == "a photo of <stark> dog, @nobody"
    assert report["unknown"] == ["nobody"]
    plain = client.post("/api/v1/prompts/check", json={"prompt": "a photo of dog"}).json()
    assert plain == {"tokens": 6, "limit": 40, "text": "a photo of dog", "awaited": [], "unknown": []}


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("@stark on the moon", "<stark> dog on the moon"),
        ("@stark dog on the moon", "<stark> dog on the moon"),
        ("@STARK Dog!", "<stark> Dog!"),
        ("@stark doghouse", "<stark> dog doghouse"),
        ("(@stark), @stark.", "(<stark> dog), <stark> dog."),
        ("@stark- red", "<stark> dog- red"),
        ("me@stark.org and @stark", "me@stark.org and <stark> dog"),
    ],
)
def test_tokens_become_placeholder_and_noun(api: Api, workshop: Workshop, prompt: str, text: str) -> None:
    api.taught(workshop)
    job = api.generate(prompt)
    assert workshop.job(job["id"]).spec["text"] == text


def test_a_renamed_token_still_finds_its_weights(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept, weights_id = api.taught(workshop)
    client.patch(f"/api/v1/concepts/{concept['id']}", json={"token": "rex", "class_noun": "wolf"})
    job = api.generate("@rex on the moon")
    spec = workshop.job(job["id"]).spec
    assert spec["text"] == "<stark> dog on the moon"
    assert [weights["file"]["id"] for weights in spec["weights"]] == [weights_id]
    assert client.post("/api/v1/generations", json={"prompt": "@stark"}).json()["code"] == "unknown-token"


def test_the_newest_weights_are_taken_unless_others_are_named(api: Api, workshop: Workshop) -> None:
    concept, first = api.taught(workshop)
    api.train(concept["id"])
    second = workshop.train()
    newest = workshop.job(api.generate("@stark")["id"]).spec["weights"]
    assert [weights["file"]["id"] for weights in newest] == [second]
    chosen = workshop.job(api.generate("@stark", weights=[{"id": first, "scale": 0.5}])["id"]).spec["weights"]
    assert [(weights["file"]["id"], weights["scale"]) for weights in chosen] == [(first, 0.5)]


def test_a_concept_alone_gets_the_scale_that_suits_it_and_several_all_they_learned(
    api: Api, workshop: Workshop
) -> None:
    def scales(prompt: str, **more: Any) -> list[float]:
        return [each["scale"] for each in workshop.job(api.generate(prompt, **more)["id"]).spec["weights"]]

    concept, first = api.taught(workshop)
    api.train(concept["id"])
    own = workshop.train(scale=0.65)
    _, other = api.taught(workshop, "Other")
    assert scales("@stark and @stark") == [0.65]
    assert scales("@stark", weights=[{"id": own}]) == [0.65]
    assert scales("@stark", weights=[{"id": own, "scale": 1.0}]) == [1.0]
    assert scales("@stark", weights=[{"id": first}]) == [1.0]
    box = {"x": 0.0, "y": 0.0, "width": 0.5, "height": 1.0, "prompt": "@stark"}
    assert scales("@stark on the beach", regions=[box]) == [0.65]
    assert scales("@stark and @other") == [1.0, 1.0]
    assert scales("@stark and @other", weights=[{"id": own, "scale": 0.5}, {"id": other}]) == [0.5, 1.0]


def test_reasons_a_token_cannot_be_used(client: TestClient, api: Api, workshop: Workshop) -> None:
    _, first = api.taught(workshop)
    api.concept("Fresh")
    _, other = api.taught(workshop, "Other")

    def code(**body: Any) -> str:
        answer = client.post("/api/v1/generations", json=body)
        assert answer.status_code == 422, answer.text
        return str(answer.json()["code"])

    assert code(prompt="@fresh") == "untrained-token"
    assert code(prompt="@stark", weights=[{"id": other}]) == "token-not-taught"
    assert code(prompt="@stark", weights=[{"id": first}, {"id": first}]) == "invalid"


def test_which_base_is_meant(client: TestClient, api: Api, workshop: Workshop, studio: Studio) -> None:
    api.taught(workshop)
    workshop.open(base(), base("second", hash="cd" * 32, methods=[]))
    assert client.post("/api/v1/generations", json={"prompt": "a dog"}).json()["code"] == "base-required"
    assert workshop.job(api.generate("@stark")["id"]).base == "toy"
    concept = api.concept("New", photos=3)
    body = {"concepts": [concept["id"]], "base": "second"}
    assert client.post("/api/v1/trainings", json=body).json()["code"] == "method-not-served"
    with studio.writing() as session:
        workers.register_bases(session, workshop.worker_id, [base()])
    answer = client.post("/api/v1/generations", json={"prompt": "a dog", "base": "second"})
    assert (answer.status_code, answer.json()["code"]) == (422, "base-unavailable")
    listed = {item["id"]: item["available"] for item in client.get("/api/v1/bases").json()["items"]}
    assert listed == {"toy": True, "second": False}


def test_work_is_accepted_while_every_worker_is_away(
    client: TestClient, workshop: Workshop, studio: Studio
) -> None:
    with studio.writing() as session:
        workers.goodbye(session, workshop.worker_id)
    answer = client.post("/api/v1/generations", json={"prompt": "a dog"})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")


@pytest.mark.parametrize("chosen", [True, False], ids=["chosen", "by-token"])
def test_weights_of_a_base_that_has_changed_are_told_at_the_door(
    client: TestClient, api: Api, workshop: Workshop, chosen: bool
) -> None:
    """No worker would draw with them: it proves the hash before it reads weights."""
    _, weights = api.taught(workshop)
    workshop.open(base(hash="ef" * 32))
    asked = {"weights": [{"id": weights}]} if chosen else {}
    for boxes in ([], [{"x": 0, "y": 0, "width": 1, "height": 1, "prompt": "@stark"}]):
        body = {"prompt": "a photo of @stark", "regions": boxes, **asked}
        answer = client.post("/api/v1/generations", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "base-changed"), answer.text
        assert "has changed since @stark learned on it" in answer.json()["errors"][0]["detail"]
    assert client.get("/api/v1/jobs?kind=generate").json()["items"] == []
