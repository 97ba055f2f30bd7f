"""``POST /concepts/{id}/weights``: a version from another studio, by the form on a concept's page; and
``POST /concepts/{id}/weights/{weights}/smaller``: a version made smaller, likewise.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from backend import weights_upload
from backend.errors import AppError, Invalid
from backend.schemas.compressions import CompressionCreate
from backend.services import compressions, concepts, foreign_imports, imports, weights
from frontend import smaller_form
from frontend.asking import Form, ItemId, Owner, Studied, beside_fields, checked_id, files, text, valid
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
        with studio.reading() as look:
            received = foreign_imports.native(look, studio.storage, owner, received, concept_ids=[id])
        with studio.writing() as session:
            imports.store(session, studio.storage, owner, received, [id])
    except AppError as error:
        return concept_page(request, studio, owner, id, errors=beside_fields(error), status=error.status)
    return see(f"/concepts/{id}#versions")


@router.post("/concepts/{id}/weights/{version}/smaller")
def make_smaller(
    *,
    request: Request,
    studio: Studied,
    owner: Owner,
    id: ItemId,
    version: Annotated[str, Path(max_length=40)],
    form: Form,
) -> Response:
    with studio.reading() as look:
        concepts.get(look, owner, id)
        row = weights.get(look, owner, checked_id(version))
    try:
        body = valid(CompressionCreate, smaller_form.wanted(row, form))
        studio.storage.require_space()
        with studio.writing() as session:
            settings = studio.settings
            job = compressions.start(
                session, studio.storage, owner, body, settings.max_queued_jobs, compare=settings.calibrate
            )
    except AppError as error:
        said = beside_fields(error, {f"{name}": "amount" for name in smaller_form.CRITERIA})
        given = {name: text(form, name) for name in form}
        view = {"id": version, "errors": said, "given": given}
        return concept_page(request, studio, owner, id, smaller=view, status=error.status)
    return see(f"/jobs/{job.id}")
