"""Jobs: the truth about work."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from backend.api.accepted import accepted
from backend.api.dependencies import Cursor, ItemId, Limit, Owner, Reads, Studied, Writes
from backend.api.files import file_of, send
from backend.api.registry import make_router, problems
from backend.schemas.jobs import Job, JobKind, JobState
from backend.schemas.strict import Page
from backend.services import jobs, previews

router = make_router("jobs")


@router.get("/jobs", responses=problems())
def list_jobs(
    *,
    session: Reads,
    owner: Owner,
    state: Annotated[JobState | None, Query()] = None,
    kind: Annotated[JobKind | None, Query()] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Job]:
    """Jobs, newest first."""
    rows, after = jobs.page(session, owner, state=state, kind=kind, limit=limit, cursor=cursor)
    return Page(items=[jobs.to_schema(session, row) for row in rows], next=after)


@router.get("/jobs/{id}", responses=problems(404))
def get_job(job_id: ItemId, session: Reads, owner: Owner) -> Job:
    """A job as it stands."""
    return jobs.to_schema(session, jobs.get(session, owner, job_id))


@router.post("/jobs/{id}/cancel", status_code=202, responses=problems(404, 409))
def cancel_job(job_id: ItemId, session: Writes, owner: Owner, response: Response) -> Job:
    """Stop it and keep nothing. Idempotent; 409 when it has succeeded or failed."""
    return accepted(session, response, jobs.request_cancel(session, owner, job_id))


@router.post("/jobs/{id}/finish", status_code=202, responses=problems(404, 409))
def finish_job(job_id: ItemId, session: Writes, owner: Owner, response: Response) -> Job:
    """A running training: stop now and keep what is learned."""
    return accepted(session, response, jobs.request_finish(session, owner, job_id))


@router.post("/jobs/{id}/retry", status_code=202, responses=problems(404, 409, 429, 507))
def retry_job(job_id: ItemId, session: Writes, owner: Owner, studio: Studied, response: Response) -> Job:
    """A new job with the same spec, linked by ``retry_of``. 409 unless the old one failed or was cancelled."""
    studio.storage.require_space()
    row = jobs.retry(session, owner, job_id, studio.settings.max_queued_jobs)
    return accepted(session, response, row)


@router.get(
    "/jobs/{id}/previews/{number}",
    response_class=Response,
    responses={200: file_of("image/png", "image/webp"), **problems(404)},
)
def get_preview(
    *, job_id: ItemId, number: str, request: Request, session: Reads, owner: Owner, studio: Studied
) -> Response:
    """A preview picture of a training, numbered in the order they appeared."""
    artifact = previews.get(session, owner, job_id, number)
    path = studio.storage.path(artifact.storage_key)
    return send(request, path, media_type=artifact.media_type, sha256=artifact.sha256)
