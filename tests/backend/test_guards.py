"""Hosts, origins and headers: the rows in-H of the bad input table, and what every answer carries."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend.auth import check_bind
from backend.main import create_app
from backend.settings import Settings
from tests.backend.conftest import Api

GOOD = {"name": "Stark", "class_noun": "dog"}


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "a b", "127.0.0.1:8000:9", "localhost/x", "0"]
)
def test_foreign_and_malformed_hosts_are_400(client: TestClient, host: str) -> None:
    answer = client.get("/healthz", headers={"host": host})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-host")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8123", "localhost:80", "LOCALHOST", "[::1]:8000"])
def test_loopback_hosts_are_served(client: TestClient, host: str) -> None:
    assert client.get("/healthz", headers={"host": host}).status_code == 200


def test_two_hosts_are_400(client: TestClient) -> None:
    request = client.build_request("GET", "/healthz", headers=[("host", "127.0.0.1"), ("host", "localhost")])
    assert client.send(request).status_code == 400


def test_further_hosts_can_be_allowed(settings: Settings) -> None:
    allowed = settings.model_copy(update={"allowed_hosts": ["studio.lan"]})
    with TestClient(create_app(allowed), base_url="http://studio.lan") as client:
        assert client.get("/healthz").status_code == 200


ORIGINS = [
    ({}, 201),
    ({"origin": "http://127.0.0.1"}, 201),
    ({"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1"}, 201),
    ({"sec-fetch-site": "none"}, 201),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "http://127.0.0.1:9999"}, 403),
    ({"origin": "http://127.0.0.1.evil.example"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403),
    ({"sec-fetch-site": "same-site"}, 403),
    ({"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1"}, 403),
]


@pytest.mark.parametrize(("headers", "status"), ORIGINS)
def test_only_our_own_pages_may_write(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.post("/api/v1/concepts", json=GOOD, headers=headers).status_code == status
    assert client.get("/api/v1/concepts", headers=headers).status_code == 200


def test_preflights_get_no_permission(client: TestClient) -> None:
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = client.options("/api/v1/concepts", headers=asked)
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_forwarded_and_override_headers_mean_nothing(client: TestClient, api: Api) -> None:
    concept = api.concept()
    headers = {
        "x-forwarded-host": "evil.example",
        "x-forwarded-for": "1.2.3.4",
        "x-http-method-override": "DELETE",
    }
    answer = client.get(f"/api/v1/concepts/{concept['id']}", headers=headers)
    assert answer.status_code == 200
    assert "evil.example" not in answer.text
    for method in ("TRACE", "CONNECT", "PUT"):
        refused = client.request(method, "/api/v1/concepts")
        assert (refused.status_code, refused.json()["code"]) == (405, "method-not-allowed")


@pytest.mark.parametrize(
    "path", ["/healthz", "/api/v1/concepts", "/api/v1/nothing", "/docs", "/api/v1/jobs/x", "/"]
)
def test_every_answer_carries_the_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-request-id"]
    assert "server" not in headers


def test_request_ids_are_kept_when_they_are_harmless(client: TestClient) -> None:
    assert (
        client.get("/healthz", headers={"x-request-id": "trace-12345678"}).headers["x-request-id"]
        == "trace-12345678"
    )
    answer = client.get("/api/v1/nothing", headers={"x-request-id": "<script>"})
    assert answer.json()["request_id"] == answer.headers["x-request-id"] != "<script>"


def test_what_nobody_foresaw_is_a_500_without_detail(app: FastAPI) -> None:
    @app.get("/breaks")
    def breaks() -> None:
        raise RuntimeError("secret detail")

    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = client.get("/breaks")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_database_away_is_503_and_not_500(app: FastAPI, client: TestClient, settings: Settings) -> None:
    app.state.studio.database.close()
    (settings.data_dir / "moongate.sqlite3").unlink()
    answer = client.get("/api/v1/concepts")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"]
    ready = client.get("/readyz")
    assert ready.status_code == 503


def test_an_open_bind_needs_the_flag(settings: Settings) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_bind(settings.model_copy(update={"host": host}))
    for host in ("0.0.0.0", "192.168.1.5", "studio.lan"):
        with pytest.raises(ValueError, match="loopback"):
            check_bind(settings.model_copy(update={"host": host}))
        check_bind(settings.model_copy(update={"host": host, "insecure_public_bind": True}))
