"""Liveness, readiness and metrics, at the root."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from backend.api.dependencies import Reads, Studied
from backend.services import health

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(studio: Studied) -> JSONResponse:
    """Database, storage, and a supervisor that lives; 503 with the reasons otherwise."""
    found = health.readiness(studio.database, studio.storage, studio.settings.lease_s)
    body = {"status": "ready" if found.ready else "not ready", "reasons": found.reasons}
    return JSONResponse(body, 200 if found.ready else 503, {"cache-control": "no-store"})


@router.get("/metrics")
def metrics(request: Request, session: Reads, studio: Studied) -> Response:
    """Prometheus text."""
    state = request.app.state
    text = state.metrics.text(
        health.jobs_by_state(session),
        health.workers_by_state(session, studio.settings.lease_s),
        health.queue_age_s(session),
        state.hub.streams,
    )
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
