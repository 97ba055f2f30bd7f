"""``POST /concepts/{id}/weights``: a version from another studio, by the form on a concept's page."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from backend import weights_upload
from backend.errors import AppError, Invalid
from backend.services import concepts, imports
from frontend.asking import Form, ItemId, Owner, Studied, beside_fields, files
from frontend.pages.concepts import concept_page
from frontend.rendering import PageRoute, see

router = APIRouter(route_class=PageRoute)


@router.post("/concepts/{id}/weights")
def import_weights(request: Request, studio: Studied, owner: Owner, id: ItemId, form: Form) -> Response:
    with studio.reading() as look:
        concepts.get(look, owner, id)
    try:
        chosen = files(form, "file")
        if not chosen:
            raise Invalid.at("/file", "Choose a file.")
        limit = studio.settings.max_weights_bytes
        received = weights_upload.receive(studio.storage, chosen[0].file, limit)
        with studio.writing() as session:
            imports.store(session, studio.storage, owner, received, id)
    except AppError as error:
        return concept_page(request, studio, owner, id, errors=beside_fields(error), status=error.status)
    return see(f"/concepts/{id}#versions")
