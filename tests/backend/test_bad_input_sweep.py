"""Hostile values in every field and parameter of every operation of the OpenAPI document: never a 5xx (in-X1)."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.backend.conftest import Api
from tests.backend.workshop import Workshop

HOSTILE: list[Any] = [
    None, True, 0, -1, 2**63, 1e308, 0.5, "", " ", "\x00", "\ud7ff\U0001f319", "x" * 3000, "../../etc/passwd",
    "<script>alert(1)</script>", "%s%n", "{{7*7}}", "' OR 1=1 --", "@", "@@stark", "<stark>",
    "01900000-0000-7000-8000-000000000000", [], [None], [[[]]], ["x"] * 300, {}, {"id": {}}, {"__proto__": 1},
]  # fmt: skip
GOOD = {
    "create_concept": {"name": "Stark", "class_noun": "dog"},
    "update_concept": {},
    "edit_photo": {},
    "start_training": {"concepts": ["01900000-0000-7000-8000-000000000000"]},
    "start_generation": {"prompt": "a dog"},
    "start_evaluation": {"weights": ["01900000-0000-7000-8000-000000000000"]},
    "check_prompt": {"prompt": "a dog"},
    "update_image": {"starred": True},
    "start_merge": {
        "weights": [
            {"id": "01900000-0000-7000-8000-000000000000"},
            {"id": "01900000-0000-7000-8000-000000000001"},
        ]
    },
    "forecast_merge": {
        "weights": [
            {"id": "01900000-0000-7000-8000-000000000000"},
            {"id": "01900000-0000-7000-8000-000000000001"},
        ]
    },
    "start_compression": {"weights": "01900000-0000-7000-8000-000000000000", "rank": 1},
}


@pytest.fixture
def schema(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def check(answer: Any, what: str) -> None:
    assert answer.status_code < 500 or answer.json()["code"] == "no-base-model", (
        what,
        answer.status_code,
        answer.text,
    )
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json", what
        assert set(answer.json()) >= {
            "type",
            "title",
            "status",
            "detail",
            "instance",
            "code",
            "request_id",
            "errors",
        }


def test_bodies(client: TestClient, api: Api, workshop: Workshop, schema: dict[str, Any]) -> None:
    concept = api.concept("Swept")
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" not in content:
                continue
            name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
            fields = schema["components"]["schemas"][name]["properties"]
            for field, value in itertools.product(fields, HOSTILE):
                body = json.dumps({**GOOD[operation["operationId"]], field: value}).encode()
                answer = client.request(
                    method,
                    path.replace("{id}", concept["id"]),
                    content=body,
                    headers={"content-type": "application/json"},
                )
                check(answer, f"{operation['operationId']}.{field} = {str(value)[:40]!r}")


def test_parameters(client: TestClient, workshop: Workshop, schema: dict[str, Any]) -> None:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                for value in (v for v in HOSTILE if isinstance(v, str) or v in (0, -1, 2**63)):
                    if parameter["in"] == "query":
                        filled = path.replace("{id}", "x")
                        answer = client.request(method, filled, params={parameter["name"]: str(value)})
                        check(answer, f"{operation['operationId']}?{parameter['name']}={str(value)[:40]!r}")
