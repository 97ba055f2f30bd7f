"""Merges: the row in-J6 of the bad input table, and what else a merge cannot take. Every refusal is in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save
from sqlalchemy import update

from backend.identifiers import new_id
from backend.models import BaseModel, ConceptWeights, Owner
from backend.schemas.merges import MERGE_CARDS
from backend.schemas.merges.taking import ONE_METHOD
from backend.schemas.methods import CARDS
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import TEXT_SITES, Workshop

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
    installed(studio, two[1], "dreambooth", "site.conv_in.delta")
    found = problem(client, body(*two))
    assert (found["code"], found["errors"][0]["pointer"]) == ("not-mergeable", "/weights/1")
    assert "Mia changes more of the model than keys and values of text, conv_in among it" in found["detail"]
    concept = api.concept("Rex", photos=3)
    api.train(concept["id"])
    layered = [{"token": "rex", "class_noun": "dog", "kind": "subject", "layers": ["a", "b"]}]
    rex = workshop.train()
    with studio.writing() as session:
        row = session.get_one(ConceptWeights, rex)
        row.manifest = {**row.manifest, "tokens": layered}
    assert "for every layer (P+)" in problem(client, body(two[0], rex))["detail"]


def test_keys_and_values_alone_are_taken_whatever_the_method(
    client: TestClient, studio: Studio, two: tuple[str, str]
) -> None:
    """DreamBooth that was made small enough changes no more; it needs no other merge than text-side weights do."""
    installed(studio, two[1], "dreambooth", *(f"site.{site}.delta" for site in TEXT_SITES))
    answer = client.post(ADDRESSES[0], json=body(*two))
    assert answer.status_code == 202, answer.text


REFUSED: dict[str, tuple[str, str, str, str]] = {
    "a norm": ("gradient-fusion", "dreambooth", "site.norm.delta", "convolutions, norms or biases too"),
    "a bias": ("gradient-fusion", "custom-diffusion", "site.out.bias_delta", "convolutions, norms or biases too"),
    "a convolution": ("gradient-fusion", "svdiff", "site.conv_in.shift", "convolutions, norms or biases too"),
    "a sum of the text encoder": ("linear", "lora", "encoder.q_proj.down", "changes the text encoder"),
    "shifts of the text encoder": ("svdiff-sum", "svdiff", "encoder.q_proj.shift", "changes the text encoder"),
    "another method": ("svdiff-sum", "lora", "site.out.down", "takes SVDiff alone, and Mia was made with LoRA"),
    "DoRA": ("lora-svd", "lora", "site.out.magnitude", "learned with DoRA"),
    "a gate": ("ties", "perfusion", "site.out.target", "opens a gate at its word"),
    "no Perfusion": ("perfusion-gates", "linear", "site.out.delta", "alone, and Mia was made with Sum"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_worker_could_not_merge_is_refused_before_there_is_a_job(
    what: str, client: TestClient, studio: Studio, two: tuple[str, str]
) -> None:
    merge, method, tensor, said = REFUSED[what]
    installed(studio, two[1], method, tensor)
    if own := ONE_METHOD.get(MERGE_CARDS[merge].takes):
        installed(studio, two[0], own)
    found = problem(client, body(*two, method=merge))
    assert (found["code"], found["errors"][0]["pointer"]) == ("not-mergeable", "/weights/1")
    assert said in found["detail"]
    assert found["detail"].endswith(".")


def test_a_file_that_is_gone_is_said(client: TestClient, studio: Studio, two: tuple[str, str]) -> None:
    installed(studio, two[1], "dreambooth", "site.conv_in.delta")
    change(studio, two[1], storage_key=new_id())
    found = problem(client, body(*two, method="linear"))
    assert (found["code"], found["errors"][0]["pointer"]) == ("weights-unreadable", "/weights/1")


def installed(studio: Studio, weights: str, method: str, *tensors: str) -> None:
    """Make weights those of a method that changes the model itself: with these tensors in their file."""
    shape = {"norm": (4,), "conv_in": (4, 4, 3, 3), "out": (4, 4), "q_proj": (4, 4)}
    data = {name: np.ones(shape.get(name.split(".")[1], (4, 6)), "float32") for name in tensors}
    with studio.writing() as session:
        row = session.get_one(ConceptWeights, weights)
        row.method, row.side = method, "weights"
        params = CARDS[method].params_type().model_dump(mode="json") if method in CARDS else {}
        row.manifest = {**row.manifest, "method": method, "side": "weights", "params": params}
        row.storage_key = studio.storage.put(save(data or {"x": np.ones(1)})).key
