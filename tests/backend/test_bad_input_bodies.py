"""Hostile JSON and headers: the rows in-J, in-H3, in-C2 of the bad input table."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.backend.conftest import Api

JSON = {"content-type": "application/json"}
GOOD = {"name": "Stark", "kind": "subject", "class_noun": "dog"}
MALFORMED = {
    "empty": b"",
    "blank": b"  ",
    "open": b'{"name": ',
    "trailing comma": b'{"name": "x",}',
    "array root": b"[1]",
    "string root": b'"x"',
    "null root": b"null",
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "utf-16": json.dumps(GOOD).encode("utf-16"),
    "latin-1": '{"name": "é"}'.encode("latin-1"),
    "duplicate keys": b'{"name": "a", "name": "b", "class_noun": "dog"}',
    "nested duplicate keys": b'{"name": {"a": 1, "a": 2}}',
    "deep arrays": b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "NaN": b'{"name": NaN}',
    "huge number": b'{"name": ' + b"9" * 10_000 + b"}",
    "two values": b"{} {}",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_json_is_400(client: TestClient, case: str) -> None:
    answer = client.post("/api/v1/concepts", content=MALFORMED[case], headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed-json")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "", "x"],
)
def test_another_content_type_is_415(client: TestClient, content_type: str) -> None:
    answer = client.post("/api/v1/concepts", content=json.dumps(GOOD), headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")


def test_compressed_bodies_are_415(client: TestClient) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    answer = client.post("/api/v1/concepts", content=bomb, headers={**JSON, "content-encoding": "gzip"})
    assert answer.status_code == 415


def test_a_large_body_is_413(client: TestClient) -> None:
    body = json.dumps({"name": "x" * 1_100_000})
    answer = client.post("/api/v1/concepts", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


@pytest.mark.parametrize("field", ["owner_id", "state", "fence", "id", "photos", "priority"])
def test_unknown_fields_are_422_by_name(client: TestClient, field: str) -> None:
    answer = client.post("/api/v1/concepts", json={**GOOD, field: "x"})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"pointer": f"/{field}", "detail": "There is no such field here; remove it."}
    ]


CONCEPTS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["/name"]),
    ({"name": "", "kind": "thing", "token": "UPPER"}, ["/kind", "/name", "/token"]),
    ({"name": 5}, ["/name"]),
    ({"name": "x" * 81, "class_noun": "dog"}, ["/name"]),
    ({"name": "Stark", "kind": "subject"}, ["/class_noun"]),
    ({"name": "Stark", "class_noun": "<dog>"}, ["/class_noun"]),
    ({"name": "Stark", "class_noun": "d\u0000g"}, ["/class_noun"]),
    ({"name": "Stark", "class_noun": "dog", "token": "all"}, ["/token"]),
    ({"name": "Stark", "class_noun": "dog", "token": "-x"}, ["/token"]),
    ({"name": "Stark", "class_noun": "dog", "token": "x" * 41}, ["/token"]),
]


@pytest.mark.parametrize(("body", "pointers"), CONCEPTS)
def test_wrong_concepts_name_every_field_at_once(
    client: TestClient, body: dict[str, Any], pointers: list[str]
) -> None:
    answer = client.post("/api/v1/concepts", json=body)
    assert answer.status_code == 422
    assert sorted(error["pointer"] for error in answer.json()["errors"]) == pointers


def test_the_value_is_never_repeated(client: TestClient, api: Api) -> None:
    secret = "tell-nobody"
    for body in (
        {"name": {"a": secret}, "class_noun": "dog"},
        {"name": "x", "kind": secret},
        {"name": "x", "class_noun": "dog", "token": f"{secret}!"},
    ):
        answer = client.post("/api/v1/concepts", json=body)
        assert answer.status_code == 422
        assert secret not in answer.text
    answer = client.get("/api/v1/concepts", params={"limit": secret})
    assert secret not in answer.text
    assert secret not in client.get(f"/api/v1/images/{secret}").json()["detail"]


TRAININGS: list[tuple[dict[str, Any], str]] = [
    ({"concepts": []}, "/concepts"),
    ({"concepts": ["x"]}, "/concepts/0"),
    ({"method": "magic"}, "/method"),
    ({"base": "sd99"}, "/base"),
    ({"preset": "fastest"}, "/preset"),
    ({"preset": "faces", "method": "lora"}, "/preset"),
    ({"params": {"prior": "borrowed"}}, "/params/prior"),
    ({"params": {"steps": 0}}, "/params/steps"),
    ({"params": {"steps": "many"}}, "/params/steps"),
    ({"params": {"steps": True}}, "/params/steps"),
    ({"params": {"learning_rate": 5}}, "/params/learning_rate"),
    ({"params": {"steps_": 5}}, "/params/steps_"),
    ({"seed": -1}, "/seed"),
    ({"seed": 2**32}, "/seed"),
    ({"previews": ["a"] * 5}, "/previews"),
    ({"previews": [""]}, "/previews/0"),
    ({"previews": ["ok @stark", "a @nobody"]}, "/previews/1"),
    ({"previews": ["snow " * 60]}, "/previews/0"),
    ({"queue": "gen_any"}, "/queue"),
]


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(("change", "pointer"), TRAININGS)
def test_wrong_trainings(client: TestClient, api: Api, change: dict[str, Any], pointer: str) -> None:
    concept = api.concept(photos=3)
    answer = client.post("/api/v1/trainings", json={"concepts": [concept["id"]], **change})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert client.get("/api/v1/jobs").json()["items"] == []


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("count", [0, 2])
def test_too_few_photos(client: TestClient, api: Api, count: int) -> None:
    concept = api.concept(photos=count)
    answer = client.post("/api/v1/trainings", json={"concepts": [concept["id"]]})
    assert (answer.status_code, answer.json()["code"]) == (422, "photo-count")
    assert (answer.json()["count"], answer.json()["min"]) == (count, 3)


def test_without_any_base_model(client: TestClient, api: Api) -> None:
    concept = api.concept()
    for path, body in (("trainings", {"concepts": [concept["id"]]}), ("generations", {"prompt": "a dog"})):
        answer = client.post(f"/api/v1/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "no-base-model")
        assert answer.headers["retry-after"]


@pytest.mark.parametrize("key", ["", "x" * 201, "a\tb"])
def test_impossible_idempotency_keys(client: TestClient, key: str) -> None:
    answer = client.post("/api/v1/concepts", json=GOOD, headers={"idempotency-key": key})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-idempotency-key")
