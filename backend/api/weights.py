"""Weights."""

from __future__ import annotations

from typing import Annotated

from fastapi import File, Form, Query, Request, Response, UploadFile

from backend import weights_upload
from backend.api.dependencies import Cursor, ItemId, Limit, Owner, Reads, Studied, Writes
from backend.api.files import file_of, send, stream
from backend.api.registry import make_router, problems
from backend.schemas.strict import Id, Page
from backend.schemas.weights import Weights, WeightsAnalysis
from backend.services import exports, foreign_imports, imports, weights

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
    file: Annotated[
        UploadFile, File(description="a weights file of this or another studio, or a LoRA of another program")
    ],
    concept: Annotated[
        list[Id] | None,
        Form(
            max_length=64,
            description="add them to this concept, or, repeated, to one for each token of the file; "
            "else new ones are made",
        ),
    ] = None,
    base: Annotated[
        str | None,
        Form(
            max_length=200, description="of another program's file, which does not say it; else the only one"
        ),
    ] = None,
    session: Writes,
    owner: Owner,
    studio: Studied,
    response: Response,
) -> Weights:
    """Take in weights that another studio exported, or a LoRA in kohya's or diffusers' layout.

    A file that is not sound, or fits no base here, stores nothing.
    """
    received = weights_upload.receive(studio.storage, file.file, studio.settings.max_weights_bytes)
    with studio.reading() as look:
        received = foreign_imports.native(
            look, studio.storage, owner, received, concept_ids=concept or (), base_id=base
        )
    row = imports.store(session, studio.storage, owner, received, concept or ())
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
    format: Annotated[
        str, Query(max_length=40, description="`native`, `kohya`, `webui`, `diffusers` or `embedding`")
    ] = "native",
) -> Response:
    """The safetensors file under a speaking name, or the same numbers as another program names them."""
    exports.require_known(format)
    row = weights.get(session, owner, weights_id)
    name = weights.file_name(session, row)
    path = studio.storage.path(row.storage_key)
    if format != "native" and path.is_file():
        name = f"{name.removesuffix('.safetensors')}-{format}.safetensors"
        return stream(exports.export(studio.storage, row, format).pieces(), media_type=_TYPE, name=name)
    return send(request, path, media_type=_TYPE, sha256=row.sha256, name=name, disposition="attachment")


@router.delete("/weights/{id}", status_code=204, responses=problems(404, 409))
def delete_weights(weights_id: ItemId, session: Writes, owner: Owner) -> None:
    """Delete weights; pictures drawn with them stay. 409 while a job uses them."""
    weights.delete(session, owner, weights_id)
