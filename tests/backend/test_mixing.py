"""Concepts of different weights in one prompt: what the worker merges on the fly, and what it cannot."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.models import ConceptWeights
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop, base

EVERY = base(methods=["custom-diffusion", "textual-inversion", "perfusion", "dreambooth"])


def draw(client: TestClient, prompt: str = "@stark and @mia") -> Any:
    return client.post("/api/v1/generations", json={"prompt": prompt})


@pytest.fixture
def two(api: Api, workshop: Workshop) -> tuple[str, str]:
    return api.taught(workshop)[1], api.taught(workshop, "Mia")[1]


def change(studio: Studio, weights: str, **columns: Any) -> None:
    with studio.writing() as session:
        session.execute(update(ConceptWeights).where(ConceptWeights.id == weights).values(**columns))


def layered(studio: Studio, weights: str, token: str) -> None:
    """Gives the weights' word vectors of its own for every layer."""
    with studio.writing() as session:
        row = session.get_one(ConceptWeights, weights)
        word = {"token": token, "class_noun": "dog", "kind": "subject", "layers": ["a", "b"]}
        row.manifest = {**row.manifest, "tokens": [word]}


def test_text_side_weights_share_a_prompt(
    client: TestClient, workshop: Workshop, two: tuple[str, str]
) -> None:
    answer = draw(client)
    assert answer.status_code == 202, answer.text
    job = workshop.job(answer.json()["id"])
    assert {used["file"]["id"] for used in job.spec["weights"]} == set(two)
    assert job.batch_key is not None


def test_weight_side_ones_do_not(client: TestClient, studio: Studio, two: tuple[str, str]) -> None:
    change(studio, two[1], side="weights", method="dreambooth")
    answer = draw(client)
    assert (answer.status_code, answer.json()["code"]) == (422, "needs-merge")
    for way in ("Train them together", "merge them", "region"):
        assert way in answer.json()["detail"]


def test_words_for_every_layer_only_with_their_like(
    client: TestClient, studio: Studio, two: tuple[str, str]
) -> None:
    layered(studio, two[1], "mia")
    change(studio, two[1], method="textual-inversion")
    answer = draw(client)
    assert (answer.status_code, answer.json()["code"]) == (422, "needs-merge")
    assert "P+" in answer.json()["detail"]
    change(studio, two[0], method="textual-inversion")
    assert draw(client).status_code == 202


def test_words_of_one_name_are_refused(client: TestClient, api: Api, workshop: Workshop) -> None:
    """A concept may have got another token since it was taught, and another one has the first by now."""
    old, _ = api.taught(workshop)
    client.patch(f"/api/v1/concepts/{old['id']}", json={"token": "before"}).raise_for_status()
    api.taught(workshop)
    answer = draw(client, "@stark and @before")
    assert (answer.status_code, answer.json()["code"]) == (422, "needs-merge")
    detail = answer.json()["detail"]
    assert detail.startswith("Stark (@stark) and Stark (@before) were taught with the same word <stark>,")
    assert "Merge them, which gives each a word of its own, or train one again" in detail


def test_two_versions_of_one_concept_are_not_to_be_merged(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    """Merging refuses one concept twice, so nobody is told to."""
    concept, first = api.taught(workshop)
    api.train(concept["id"])
    second = workshop.train()
    body = {"prompt": "@stark", "weights": [{"id": first}, {"id": second}]}
    answer = client.post("/api/v1/generations", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"] == "Two of these files teach Stark (@stark). Choose one of them."


def test_files_without_a_concept_are_told_by_their_word(
    client: TestClient, studio: Studio, api: Api, workshop: Workshop, two: tuple[str, str]
) -> None:
    """Imported ones may teach words that nobody has as a concept."""
    with studio.writing() as session:
        row = session.get_one(ConceptWeights, two[1])
        word = {"token": "stark", "class_noun": "dog", "kind": "subject"}
        row.manifest = {**row.manifest, "tokens": [*row.manifest["tokens"], word]}
    answer = draw(client)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"].startswith("Two of these files were taught with the same word <stark>")


@pytest.mark.parametrize(
    ("method", "params", "status"),
    [
        ("custom-diffusion", {}, 202),
        ("custom-diffusion", {"train": "crossattn"}, 422),
        ("dreambooth", {}, 422),
        ("textual-inversion", {"per_layer": True}, 422),
    ],
)
def test_what_is_being_taught_is_judged_by_its_parameters(
    client: TestClient, api: Api, workshop: Workshop, method: str, params: dict[str, Any], status: int
) -> None:
    workshop.open(EVERY)
    api.taught(workshop)
    mia = api.concept("Mia", photos=3)
    api.train(mia["id"], method=method, params=params)
    answer = draw(client)
    assert answer.status_code == status, answer.text
