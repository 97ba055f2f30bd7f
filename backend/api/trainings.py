"""Trainings."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Response

from backend.api.accepted import accepted
from backend.api.dependencies import Owner, Studied, Writes
from backend.api.registry import make_router, problems
from backend.schemas.jobs import Job
from backend.schemas.trainings import TrainingCreate, TrainingForecast
from backend.services import trainings

router = make_router("trainings")
_START = {
    "quick": {
        "summary": "Learn one concept quickly",
        "value": {"concepts": ["019a0000-0000-7000-8000-000000000000"], "preset": "quick"},
    }
}


@router.post(
    "/trainings",
    status_code=202,
    responses={
        200: {"model": TrainingForecast, "description": "The forecast of a dry run"},
        **problems(404, 413, 415, 429, 507),
    },
)
def start_training(
    body: Annotated[TrainingCreate, Body(openapi_examples=_START)],
    session: Writes,
    owner: Owner,
    studio: Studied,
    response: Response,
) -> Job | TrainingForecast:
    """Learn concepts; the job's result is ``{weights: id}``. ``dry_run`` answers 200 with a forecast instead."""
    settings = studio.settings
    if body.dry_run:
        response.status_code = 200
        return trainings.forecast(session, owner, body, settings.calibrate)
    studio.storage.require_space()
    row = trainings.start(session, owner, body, settings.max_queued_jobs, settings.calibrate)
    return accepted(session, response, row)
