"""Weights."""

from __future__ import annotations

from typing import Annotated

from fastapi import File, Form, Query, Request, Response, UploadFile

from backend import weights_upload
from backend.api.dependencies import Cursor, ItemId, Limit, Owner, Reads, Studied, Writes
from backend.api.files import file_of, send
from backend.api.registry import make_router, problems
from backend.schemas.strict import Id, Page
from backend.schemas.weights import Weights, WeightsAnalysis
from backend.services import imports, weights

router = make_router("weights")
_TYPE = "application/octet-stream"


@router.get("/weights", responses=problems())
def list_weights(
    session: Reads,
    owner: Owner,
    concept: Annotated[Id | None, Query()] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Weights]:
    """Weights, newest first."""
    rows, after = weights.page(session, owner, limit, cursor, concept)
    return Page(items=weights.to_schemas(session, rows), next=after)


@router.post("/weights/import", status_code=201, responses=problems(404, 413, 415, 507))
def import_weights(
    *,
    file: Annotated[UploadFile, File(description="a native weights file of this or another studio")],
    concept: Annotated[
        Id | None, Form(description="add them to this concept; else a new one is made")
    ] = None,
    session: Writes,
    owner: Owner,
    studio: Studied,
    response: Response,
) -> Weights:
    """Take in weights that another studio exported. A file that is not sound, or fits no base here, stores nothing."""
    received = weights_upload.receive(studio.storage, file.file, studio.settings.max_weights_bytes)
    row = imports.store(session, studio.storage, owner, received, concept)
    response.headers["location"] = f"/api/v1/weights/{row.id}"
    return weights.to_schema(session, row)


@router.get("/weights/{id}", responses=problems(404))
def get_weights(weights_id: ItemId, session: Reads, owner: Owner) -> Weights:
    """Weights with their manifest, parents and report."""
    return weights.to_schema(session, weights.get(session, owner, weights_id))


@router.get("/weights/{id}/analysis", responses=problems(404))
def get_weights_analysis(weights_id: ItemId, session: Reads, owner: Owner) -> WeightsAnalysis:
    """How much each layer changed, its spectrum, and its energy by rank."""
    return weights.analysis(weights.get(session, owner, weights_id))


@router.get(
    "/weights/{id}/file",
    response_class=Response,
    responses={200: file_of(_TYPE), **problems(404, 409)},
)
def get_weights_file(
    *,
    weights_id: ItemId,
    request: Request,
    session: Reads,
    owner: Owner,
    studio: Studied,
    format: Annotated[str, Query(max_length=40, description="`native`; others once exported")] = "native",
) -> Response:
    """The safetensors file under a speaking name."""
    weights.require_native(format)
    row = weights.get(session, owner, weights_id)
    name = weights.file_name(session, row)
    path = studio.storage.path(row.storage_key)
    return send(request, path, media_type=_TYPE, sha256=row.sha256, name=name, disposition="attachment")


@router.delete("/weights/{id}", status_code=204, responses=problems(404, 409))
def delete_weights(weights_id: ItemId, session: Writes, owner: Owner) -> None:
    """Delete weights; pictures drawn with them stay. 409 while a job uses them."""
    weights.delete(session, owner, weights_id)
