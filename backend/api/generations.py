"""Generations."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Response

from backend.api.accepted import accepted
from backend.api.dependencies import Owner, Studied, Writes
from backend.api.registry import make_router, problems
from backend.schemas.generations import GenerationCreate
from backend.schemas.jobs import Job
from backend.services import generations

router = make_router("generations")
_START = {
    "concept": {"summary": "A concept", "value": {"prompt": "a photo of @stark on the moon", "num_images": 4}}
}


@router.post("/generations", status_code=202, responses=problems(404, 413, 415, 429, 507))
def start_generation(
    body: Annotated[GenerationCreate, Body(openapi_examples=_START)],
    session: Writes,
    owner: Owner,
    studio: Studied,
    response: Response,
) -> Job:
    """Draw pictures; the job's result is ``{images: [id]}``."""
    studio.storage.require_space()
    row = generations.start(session, owner, body, studio.settings.max_queued_jobs)
    return accepted(session, response, row)
