"""Evaluations."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Query, Response

from backend.api.accepted import accepted
from backend.api.dependencies import Cursor, ItemId, Limit, Owner, Reads, Studied, Writes
from backend.api.registry import make_router, problems
from backend.schemas.evaluations import Evaluation, EvaluationCreate
from backend.schemas.jobs import Job
from backend.schemas.strict import Id, Page
from backend.services import evaluations

router = make_router("evaluations")
_START = {
    "weights": {
        "summary": "By the base's example prompts",
        "value": {"weights": ["019a0000-0000-7000-8000-000000000000"]},
    }
}


@router.post("/evaluations", status_code=202, responses=problems(404, 413, 415, 429, 507))
def start_evaluation(
    body: Annotated[EvaluationCreate, Body(openapi_examples=_START)],
    session: Writes,
    owner: Owner,
    studio: Studied,
    response: Response,
) -> Job:
    """Measure subject similarity, prompt similarity and drift; the job's result is ``{evaluation: id, report}``."""
    studio.storage.require_space()
    row = evaluations.start(session, owner, body, studio.settings.max_queued_jobs)
    return accepted(session, response, row)


@router.get("/evaluations", responses=problems())
def list_evaluations(
    session: Reads,
    owner: Owner,
    weights: Annotated[Id | None, Query()] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Evaluation]:
    """Evaluations, newest first."""
    rows, after = evaluations.page(session, owner, limit, cursor, weights)
    return Page(items=evaluations.to_schemas(session, rows), next=after)


@router.get("/evaluations/{id}", responses=problems(404))
def get_evaluation(evaluation_id: ItemId, session: Reads, owner: Owner) -> Evaluation:
    """An evaluation with its report."""
    return evaluations.to_schema(session, evaluations.get(session, owner, evaluation_id))
