"""``POST /concepts/{id}/evaluations``: has the judges measure a version, by the button beside it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import AppError
from backend.schemas.evaluations import EvaluationCreate
from backend.services import concepts, evaluations
from frontend.asking import Form, ItemId, Owner, Studied, text, valid
from frontend.pages.concepts import concept_page
from frontend.rendering import PageRoute, see

router = APIRouter(route_class=PageRoute)


@router.post("/concepts/{id}/evaluations")
def evaluate(request: Request, studio: Studied, owner: Owner, id: ItemId, form: Form) -> Response:
    with studio.reading() as look:
        concepts.get(look, owner, id)
    try:
        body = valid(EvaluationCreate, {"weights": [text(form, "weights")]})
        studio.storage.require_space()
        with studio.writing() as session:
            job = evaluations.start(session, owner, body, studio.settings.max_queued_jobs)
    except AppError as error:
        said = " ".join(wrong.detail for wrong in error.errors) or error.detail
        return concept_page(request, studio, owner, id, errors={"": said}, status=error.status)
    return see(f"/jobs/{job.id}")
