"""The API describes itself: every operation, its problems, an example for every body, and a page to read it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend.api import ROUTERS
from backend.api.dependencies import owner_of

OPERATIONS = {
    "list_bases", "list_methods", "list_merge_methods", "list_schedulers",
    "list_samples", "create_sample_concept", "get_sample_photo",
    "create_concept", "list_concepts", "get_concept", "update_concept", "delete_concept",
    "check_photos", "add_photos", "list_photos", "get_photo_file", "edit_photo", "delete_photo",
    "start_compression", "start_merge", "forecast_merge", "start_training", "check_prompt", "start_generation",
    "list_jobs", "get_job", "cancel_job", "finish_job", "retry_job", "get_preview",
    "stream_job_events", "stream_events",
    "list_weights", "get_weights", "get_weights_analysis", "get_weights_file",
    "import_weights", "delete_weights",
    "start_evaluation", "list_evaluations", "get_evaluation",
    "list_images", "get_image", "get_image_file", "get_image_thumbnail", "update_image", "delete_image",
}  # fmt: skip


@pytest.fixture
def schema(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/api/v1/openapi.json").json()
    return found


def operations(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in schema["paths"].values() for operation in path.values()]


def test_every_operation_is_listed_here(schema: dict[str, Any]) -> None:
    found = [operation["operationId"] for operation in operations(schema)]
    assert len(found) == len(set(found))
    assert set(found) == OPERATIONS


def test_every_operation_documents_its_problems(schema: dict[str, Any]) -> None:
    for operation in operations(schema):
        assert operation["description"], operation["operationId"]
        assert {"400", "422", "503"} <= operation["responses"].keys()
        for status, answer in operation["responses"].items():
            if status >= "400":
                content = answer["content"]["application/problem+json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_every_json_body_has_an_example(schema: dict[str, Any]) -> None:
    for operation in operations(schema):
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            assert content["application/json"]["examples"], operation["operationId"]


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema)))
    assert names <= schema["components"]["schemas"].keys()
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    assert set(schema["components"]["schemas"]["Problem"]["properties"]) >= {
        "type", "title", "status", "detail", "instance", "code", "request_id", "errors",
    }  # fmt: skip


def test_no_route_lacks_an_owner(app: FastAPI) -> None:
    for router in ROUTERS:
        for route in router.routes:
            calls = {each.call for each in route.dependant.dependencies}  # type: ignore[attr-defined]
            assert owner_of in calls, route


def test_docs_are_readable_without_script_or_strangers(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "<script" not in page.text
    assert not re.search(r"(src|href)=[\"']?https?:", page.text)
    assert "/api/v1/concepts" in page.text
    assert client.get("/docs.css").headers["content-type"].startswith("text/css")
