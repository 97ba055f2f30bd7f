"""The gate of a concept of Perfusion on the Compose page: shown where there is one, sent, kept, and told when wrong."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.backend.conftest import Api
from tests.backend.native_weights import native, one_word_tensors, perfusion
from tests.backend.workshop import Workshop
from tests.frontend.markup import read


@pytest.fixture
def rex(client: TestClient, api: Api, workshop: Workshop) -> str:
    """The weights of a concept of Perfusion, drawn at 0.7 and 0.15 unless said otherwise; another one has no gate."""
    api.taught(workshop)
    said = perfusion()
    files = {"file": ("rex.safetensors", native(said, one_word_tensors(said)))}
    made = client.post("/api/v1/weights/import", files=files, data={"concept": api.concept("Rex")["id"]})
    assert made.status_code == 201, made.text
    found: str = made.json()["id"]
    return found


def drawn(client: TestClient, **fields: str) -> tuple[str, dict[str, Any]]:
    """The page's address and the request of its job."""
    answer = client.post("/compose", data=fields, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    address = answer.headers["location"]
    request = client.get(f"/api/v1/jobs/{address.removeprefix('/compose?job=')}").json()["request"]
    return address, request


def test_only_concepts_with_a_gate_have_fields(client: TestClient, api: Api, workshop: Workshop) -> None:
    api.taught(workshop)
    assert "Gates" not in client.get("/compose").text


def test_what_is_typed_is_drawn_and_comes_back(client: TestClient, rex: str) -> None:
    bias, temperature = f"gate_bias.{rex}", f"gate_temperature.{rex}"
    page = read(client.get("/compose").text)
    fields = {each["name"]: each for each in page.fields if each.get("name", "").startswith("gate_")}
    assert {name: each["placeholder"] for name, each in fields.items()} == {bias: "0.7", temperature: "0.15"}
    address, request = drawn(client, prompt="a photo of @rex", **{bias: "0.5", temperature: "0.3"})
    [used] = request["weights"]
    assert (used["id"], used["gate"]) == (rex, {"bias": 0.5, "temperature": 0.3})
    shown = {each["name"]: each for each in read(client.get(address).text).fields if "name" in each}
    assert (shown[bias]["value"], shown[temperature]["value"]) == ("0.5", "0.3")
    assert '<details id="gates" open>' in client.get(address).text


def test_the_half_that_is_left_out_is_the_weights_own(client: TestClient, rex: str) -> None:
    _, request = drawn(client, prompt="a photo of @rex", **{f"gate_bias.{rex}": "0.4"})
    assert request["weights"][0]["gate"] == {"bias": 0.4, "temperature": 0.15}


def test_a_gate_counts_where_its_concept_is_named(client: TestClient, rex: str) -> None:
    gate = {f"gate_bias.{rex}": "0.4"}
    assert drawn(client, prompt="a photo of @stark", **gate)[1]["weights"] is None
    box = '[{"x": 0, "y": 0, "width": 0.5, "height": 1, "prompt": "@rex"}]'
    _, request = drawn(client, prompt="a photo of @rex", regions=box, **gate)
    assert [each["id"] for each in request["weights"]] == [rex]


@pytest.mark.parametrize(("value", "sentence"), [("3", "Give at most 2."), ("wide", "Give a number.")])
def test_a_wrong_gate_is_told_and_stays(client: TestClient, rex: str, value: str, sentence: str) -> None:
    answer = client.post("/compose", data={"prompt": "a photo of @rex", f"gate_bias.{rex}": value})
    assert answer.status_code == 422
    assert f"Gate: {sentence}" in answer.text
    assert f'value="{value}"' in answer.text
