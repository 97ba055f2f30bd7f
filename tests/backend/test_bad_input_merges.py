"""Merges: the row in-J6 of the bad input table, and what else a merge cannot take. Every refusal is in words."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.identifiers import new_id
from backend.models import BaseModel, ConceptWeights, Owner
from backend.schemas.merges.card import MergeCard
from backend.schemas.merges.closed_form import ClosedFormParams
from backend.services import merge_inputs
from backend.services.merge_inputs import Input
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop

ADDRESSES = ("/api/v1/merges", "/api/v1/merges/forecast")


@pytest.fixture
def two(api: Api, workshop: Workshop) -> tuple[str, str]:
    return api.taught(workshop)[1], api.taught(workshop, "Mia")[1]


def problem(client: TestClient, body: dict[str, Any], status: int = 422) -> dict[str, Any]:
    """What both routes say; the same, and no job."""
    said = []
    before = len(client.get("/api/v1/jobs").json()["items"])
    for address in ADDRESSES:
        answer = client.post(address, json=body)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        assert answer.status_code == status, answer.text
        said.append({key: answer.json()[key] for key in ("code", "detail", "errors")})
    assert said[0] == said[1]
    assert len(client.get("/api/v1/jobs").json()["items"]) == before
    return said[0]


def body(*weights: str, **fields: Any) -> dict[str, Any]:
    return {"weights": [{"id": each} for each in weights], **fields}


def change(studio: Studio, weights: str, **columns: Any) -> None:
    with studio.writing() as session:
        session.execute(update(ConceptWeights).where(ConceptWeights.id == weights).values(**columns))


def test_how_many(client: TestClient, two: tuple[str, str]) -> None:
    for ids in ([], [two[0]], [new_id() for _ in range(33)]):
        assert problem(client, body(*ids))["errors"][0]["pointer"] == "/weights"


def test_the_same_twice(client: TestClient, two: tuple[str, str]) -> None:
    found = problem(client, body(two[0], two[1], two[0]))
    assert (found["code"], found["errors"][0]["pointer"]) == ("same-weights", "/weights/2")


def test_two_versions_of_one_concept(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept, first = api.taught(workshop)
    other = api.concept("Mia", photos=3)
    api.train(other["id"], concept["id"])
    found = problem(client, body(first, workshop.train()))
    assert (found["code"], found["errors"][0]["pointer"]) == ("same-concept", "/weights/1")
    assert found["detail"].startswith("Stark is taught by two")


def test_different_bases(client: TestClient, studio: Studio, two: tuple[str, str]) -> None:
    change(studio, two[1], base="other")
    found = problem(client, body(*two))
    assert (found["code"], found["errors"][0]["pointer"]) == ("other-base", "/weights/1")
    assert "Mia was learned on other, Stark on toy" in found["detail"]
    change(studio, two[1], base="toy", base_hash="ee" * 32)
    assert "different versions of toy" in problem(client, body(*two))["detail"]


def test_a_base_that_has_changed(client: TestClient, studio: Studio, two: tuple[str, str]) -> None:
    with studio.writing() as session:
        session.execute(update(BaseModel).values(hash="cd" * 32))
    assert problem(client, body(*two))["code"] == "base-changed"


def test_nothing_of_anything(client: TestClient, two: tuple[str, str]) -> None:
    zero = {"weights": [{"id": each, "scale": 0} for each in two]}
    found = problem(client, zero)
    assert (found["code"], found["errors"][0]["pointer"]) == ("nothing-to-merge", "/weights")


def test_foreign_and_deleted_weights_are_missing(
    client: TestClient, studio: Studio, two: tuple[str, str]
) -> None:
    with studio.writing() as session:
        session.add(Owner(id=(somebody := new_id()), name="somebody else"))
    change(studio, two[1], owner_id=somebody)
    assert problem(client, body(*two), 404)["code"] == "not-found"
    assert problem(client, body(two[0], new_id()), 404)["code"] == "not-found"


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"method": "average"}, "unknown-method", "/method"),
    ({"params": {"captions": 5}}, "invalid", "/params/captions"),
    ({"params": {"captions": 100.5}}, "invalid", "/params/captions"),
    ({"params": {"ridge": "none"}}, "invalid", "/params/ridge"),
    ({"params": {"tolerance": 1}}, "invalid", "/params/tolerance"),
    ({"params": {"prefix": 1}}, "invalid", "/params/prefix"),
    ({"params": {"speed": 3}}, "invalid", "/params/speed"),
    ({"params": []}, "invalid", "/params"),
    ({"seed": 3}, "invalid", "/seed"),
]


def test_wrong_fields(client: TestClient, two: tuple[str, str]) -> None:
    for fields, code, pointer in WRONG:
        found = problem(client, body(*two, **fields))
        assert (found["code"], found["errors"][0]["pointer"]) == (code, pointer), fields
    for scale in (-0.1, 2.1, "much", None):
        wrong = {"weights": [{"id": two[0]}, {"id": two[1], "scale": scale}]}
        assert problem(client, wrong)["errors"][0]["pointer"] == "/weights/1/scale"


def test_what_the_closed_form_cannot_take(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio, two: tuple[str, str]
) -> None:
    change(studio, two[1], side="weights", method="dreambooth")
    found = problem(client, body(*two))
    assert (found["code"], found["errors"][0]["pointer"]) == ("not-mergeable", "/weights/1")
    assert "Mia changes more of the model than keys and values" in found["detail"]
    concept = api.concept("Rex", photos=3)
    api.train(concept["id"])
    layered = [{"token": "rex", "class_noun": "dog", "kind": "subject", "layers": ["a", "b"]}]
    rex = workshop.train()
    with studio.writing() as session:
        row = session.get_one(ConceptWeights, rex)
        row.manifest = {**row.manifest, "tokens": layered}
    assert "for every layer (P+)" in problem(client, body(two[0], rex))["detail"]


@pytest.mark.parametrize(
    ("takes", "method", "taken"),
    [
        ("additive", "dreambooth", True),
        ("additive", "perfusion", False),
        ("linear-layers", "lora", True),
        ("linear-layers", "dreambooth", False),
        ("linear-layers", "perfusion", False),
        ("lora", "lora", True),
        ("lora", "custom-diffusion", False),
        ("svdiff", "svdiff", True),
        ("svdiff", "lora", False),
        ("perfusion", "perfusion", True),
        ("perfusion", "rank-one", False),
        ("text-kv", "perfusion", True),
    ],
)
def test_what_other_merges_take(takes: Any, method: str, taken: bool) -> None:
    card = MergeCard("m", "Merge", "", "", takes, "as-inputs", ClosedFormParams)
    row = ConceptWeights(method=method, side="text", manifest=MANIFEST | {"method": method})
    said = merge_inputs.cannot_take(card, Input(row, 1.0, {}))
    assert (said == "") is taken
    assert said == "" or said.endswith(".")


MANIFEST = {
    "method": "", "side": "text", "base": "toy", "base_family": "toyworld", "base_hash": "ab", "tokens": [],
    "prediction_type": "epsilon", "params": {}, "seed": 0, "steps": 0, "code_version": "0",
}  # fmt: skip
