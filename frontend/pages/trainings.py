"""``POST /concepts/{id}/train``: starts a training from the form on a concept's page."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import AppError
from backend.schemas.concepts import ConceptPatch, ConsentGiven
from backend.services import concepts, trainings
from frontend import training_form
from frontend.asking import Form, ItemId, Owner, Studied, text
from frontend.pages.concepts import concept_page
from frontend.rendering import PageRoute, see

router = APIRouter(route_class=PageRoute)


@router.post("/concepts/{id}/train")
def train(request: Request, studio: Studied, owner: Owner, id: ItemId, form: Form) -> Response:
    try:
        with studio.reading() as session:
            body = training_form.request(session, id, form)
        studio.storage.require_space()
        with studio.writing() as session:
            if text(form, "consent"):
                agreed = ConceptPatch(consent=ConsentGiven(basis="agreed"))
                concepts.patch(session, owner, id, agreed)
            settings = studio.settings
            job = trainings.start(session, owner, body, settings.max_queued_jobs, settings.calibrate)
    except AppError as error:
        said = training_form.beside(form, error)
        return concept_page(request, studio, owner, id, errors=said, given=form, status=error.status)
    return see(f"/jobs/{job.id}")
