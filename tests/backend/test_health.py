"""Liveness, readiness with its reasons, metrics."""

from __future__ import annotations

from datetime import timedelta

from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.models import Worker, now
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop


def test_ready_means_database_storage_and_a_live_supervisor(
    client: TestClient, workshop: Workshop, studio: Studio
) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    with studio.writing() as session:
        session.execute(update(Worker).values(seen_at=now() - timedelta(seconds=studio.settings.lease_s + 1)))
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert set(answer.json()["reasons"]) == {"workers"}
    (studio.storage.root / "staging").rmdir()
    assert set(client.get("/readyz").json()["reasons"]) == {"workers", "storage"}


def test_metrics_by_route_template_and_state(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = api.concept()
    api.generate("a dog")
    client.get(f"/api/v1/concepts/{concept['id']}")
    client.get("/api/v1/nothing/at/all")
    text = client.get("/metrics").text
    assert 'moongate_http_seconds_count{method="GET",route="/api/v1/concepts/{id}",status="200"} 1.0' in text
    assert 'route="unmatched"' in text
    assert 'moongate_jobs{kind="generate",state="queued"} 1.0' in text
    assert 'moongate_workers{state="ready"} 1.0' in text
    assert concept["id"] not in text
