"""The backend's studio and its steered worker, and a studio with something of everything in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.services import jobs
from backend.services.job_events import Event, append, note
from backend.studio import Studio
from tests.backend.conftest import Api, api, app, client, database_url, settings, studio, workshop
from tests.backend.workshop import Workshop, base

__all__ = ["Api", "api", "app", "client", "database_url", "settings", "studio", "workshop"]

HOSTILE = '"><svg onload=alert(1)><script>alert("x")</script>'


@dataclass(frozen=True)
class Lived:
    """Ids of what a studio holds that was used for a while."""

    concept: str
    weights: str
    trained: str
    running: str
    queued: str
    failed: str
    drawn: str
    image: str


@pytest.fixture
def lived_in(client: TestClient, api: Api, workshop: Workshop, studio: Studio) -> Lived:
    """A taught concept, one being taught, one waiting, a failure, pictures; hostile text wherever text goes."""
    workshop.open(base(prompt_limit_tokens=300))
    concept, weights = api.taught(workshop, name="Stark")
    trained = _newest_job(client)
    drawn = api.generate(f"a photo of @stark {HOSTILE}", num_images=3)["id"]
    image = workshop.draw()[0]
    hostile = api.concept(HOSTILE[:80], photos=3, class_noun='dog"', token="mia")
    failed = api.train(hostile["id"])["id"]
    job = workshop.claim()
    with studio.writing() as session:
        jobs.transition(
            session,
            job.id,
            "failed",
            expected=("running",),
            error={"code": "worker_lost", "retryable": True, "message": HOSTILE, "detail_id": "x"},
        )
    running = api.train(hostile["id"])["id"]
    workshop.claim()
    told = [
        Event("progress", {"phase": "preparing", "step": 3, "total": 3, "rate": None, "eta_s": None}),
        Event("progress", {"phase": "training", "step": 30, "total": 300, "rate": 2.5, "eta_s": 108.0}),
        Event("loss", {"points": [[1, 0.9], [2, 0.7]]}),
        Event("preview", {"step": 0, "index": 0, "prompt": f"<mia> {HOSTILE}", "url": "/static/gate.svg"}),
        note("worker_lost", f"The worker was lost at step 20. {HOSTILE}"),
    ]
    with studio.writing() as session:
        append(session, running, told, step=30, total_steps=300, phase="training", rate=2.5, eta_s=108.0)
    waiting = api.concept("Later", photos=3)
    queued = api.train(waiting["id"])["id"]
    return Lived(concept["id"], weights, trained, running, queued, failed, drawn, image)


@pytest.fixture
def two(api: Api, workshop: Workshop) -> list[dict[str, Any]]:
    """Two concepts with weights; each carries its weights' id."""
    found = [api.taught(workshop), api.taught(workshop, "Mia")]
    return [{**concept, "taught": weights} for concept, weights in found]


def _newest_job(client: TestClient) -> str:
    newest: str = client.get("/api/v1/jobs").json()["items"][0]["id"]
    return newest
