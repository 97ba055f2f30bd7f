"""Merges."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Response

from backend.api.accepted import accepted
from backend.api.dependencies import Owner, Reads, Studied, Writes
from backend.api.registry import make_router, problems
from backend.schemas.jobs import Job
from backend.schemas.merges.requests import MergeCreate, MergeForecast
from backend.services import merges

router = make_router("weights")
_PAIR = [{"id": "019a0000-0000-7000-8000-000000000000"}, {"id": "019a0000-0000-7000-8000-000000000001"}]
_START = {
    "plain": {"summary": "Two concepts in one prompt", "value": {"weights": _PAIR}},
    "scaled": {
        "summary": "The second one weaker, with more captions held",
        "value": {"weights": [_PAIR[0], {**_PAIR[1], "scale": 0.7}], "params": {"captions": 2000}},
    },
}


@router.post("/merges", status_code=202, responses=problems(404, 413, 415, 429, 507))
def start_merge(
    body: Annotated[MergeCreate, Body(openapi_examples=_START)],
    session: Writes,
    owner: Owner,
    studio: Studied,
    response: Response,
) -> Job:
    """Merge weights; the job's result is ``{weights: id}``. Their ``report.merge`` is the verification. A merge that
    does not pass it fails with ``merge_unverified`` and keeps the report in ``result.report.merge``.
    """
    studio.storage.require_space()
    row = merges.start(session, studio.storage, owner, body, studio.settings.max_queued_jobs)
    return accepted(session, response, row)


@router.post("/merges/forecast", responses=problems(404, 409, 413, 415))
def forecast_merge(
    body: Annotated[MergeCreate, Body(openapi_examples=_START)], session: Reads, owner: Owner, studio: Studied
) -> MergeForecast:
    """What a merge would be like, without drawing a picture and without a job. 409 where weights have no sketch."""
    return merges.forecast(session, studio.storage, owner, body)
