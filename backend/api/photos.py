"""Photos of a concept."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import File, Request, Response, UploadFile

from backend.api.dependencies import ItemId, Owner, Reads, Studied, Writes, checked
from backend.api.files import file_of, send
from backend.api.registry import make_router, problems
from backend.schemas.concepts import PhotoList
from backend.services import concepts, photos
from backend.uploads import PICTURE_TYPE, THUMBNAIL_TYPE

router = make_router("photos")


@router.post("/concepts/{id}/photos", status_code=201, responses=problems(404, 409, 413, 415, 507))
def add_photos(
    concept_id: ItemId,
    files: Annotated[list[UploadFile], File(description="1 to 20 JPEG, PNG or WebP pictures")],
    session: Writes,
    owner: Owner,
    studio: Studied,
) -> PhotoList:
    """Add photos, all or none; ``errors[].pointer`` names the refused ones. No metadata is kept."""
    with studio.reading() as look:
        photos.require_changeable(look, concepts.get(look, owner, concept_id))
    prepared = studio.darkroom.prepare([(file.filename or "", file.file) for file in files])
    rows = photos.add(session, studio.storage, owner, concept_id, prepared)
    return PhotoList(items=[photos.to_schema(row) for row in rows])


@router.get("/concepts/{id}/photos", responses=problems(404))
def list_photos(concept_id: ItemId, session: Reads, owner: Owner) -> PhotoList:
    """The photos of a concept, in the order they came."""
    rows = photos.of_concept(session, concepts.get(session, owner, concept_id).id)
    return PhotoList(items=[photos.to_schema(row) for row in rows])


@router.get(
    "/concepts/{id}/photos/{photo_id}/{size}",
    response_class=Response,
    responses={200: file_of(PICTURE_TYPE, THUMBNAIL_TYPE), **problems(404)},
)
def get_photo_file(
    *,
    concept_id: ItemId,
    photo_id: str,
    size: Literal["file", "thumbnail"],
    request: Request,
    session: Reads,
    owner: Owner,
    studio: Studied,
) -> Response:
    """The stored picture (JPEG), or its thumbnail (WebP)."""
    row = photos.get(session, owner, concept_id, checked(photo_id))
    path = photos.file(studio.storage, row, "thumbnail" if size == "thumbnail" else "full")
    media_type = THUMBNAIL_TYPE if size == "thumbnail" else PICTURE_TYPE
    return send(request, path, media_type=media_type, sha256=f"{row.sha256}-{size}", name=row.display_name)


@router.delete("/concepts/{id}/photos/{photo_id}", status_code=204, responses=problems(404, 409))
def delete_photo(concept_id: ItemId, photo_id: str, session: Writes, owner: Owner) -> None:
    """Remove a photo. 409 while a training uses it."""
    photos.remove(session, owner, concept_id, checked(photo_id))
