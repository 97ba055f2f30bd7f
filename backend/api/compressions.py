"""Compressions."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Response

from backend.api.accepted import accepted
from backend.api.dependencies import Owner, Studied, Writes
from backend.api.registry import make_router, problems
from backend.schemas.compressions import CompressionCreate
from backend.schemas.jobs import Job
from backend.services import compressions

router = make_router("weights")
_ID = "019a0000-0000-7000-8000-000000000000"
_START = {
    "paper": {"summary": "60 % of the singular values' sum", "value": {"weights": _ID, "nuclear": 0.6}},
    "budget": {
        "summary": "At most 300 kB",
        "value": {"weights": _ID, "max_bytes": 300_000, "precision": "int8"},
    },
}


@router.post("/compressions", status_code=202, responses=problems(404, 413, 415, 429, 507))
def start_compression(
    body: Annotated[CompressionCreate, Body(openapi_examples=_START)],
    session: Writes,
    owner: Owner,
    studio: Studied,
    response: Response,
) -> Job:
    """Make weights smaller; the job's result is ``{weights: id}``. Their ``report.compression`` says what was kept, and
    its ``similarity`` what the judges make of pictures drawn before and after.
    """
    studio.storage.require_space()
    settings = studio.settings
    row = compressions.start(
        session, studio.storage, owner, body, settings.max_queued_jobs, compare=settings.calibrate
    )
    return accepted(session, response, row)
