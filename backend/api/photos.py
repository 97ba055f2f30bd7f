"""Photos of a concept."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Body, File, Query, Request, Response, UploadFile

from backend.api.dependencies import ItemId, Owner, Reads, Studied, Writes, checked
from backend.api.files import file_of, send
from backend.api.registry import make_router, problems
from backend.api.revalidation import require_match
from backend.schemas.concepts import Photo, PhotoList, PhotoPatch, PhotoReportList
from backend.services import concepts, photos
from backend.uploads import PICTURE_TYPE, THUMBNAIL_TYPE

router = make_router("photos")
_EDIT = {
    "turn": {"summary": "A quarter turn clockwise", "value": {"rotate": 90}},
    "crop": {"summary": "The middle", "value": {"crop": {"x": 0.2, "y": 0.2, "width": 0.6, "height": 0.6}}},
}


@router.post("/photos/check", responses=problems(413, 415, 507))
def check_photos(
    files: Annotated[list[UploadFile], File(description="1 to 20 JPEG, PNG or WebP pictures")],
    owner: Owner,
    studio: Studied,
) -> PhotoReportList:
    """What would be said of these photos: warnings and problems as when they are added. Nothing is kept."""
    prepared = studio.darkroom.prepare([(file.filename or "", file.file) for file in files])
    for photo in prepared:
        photo.discard()
    return PhotoReportList(items=[photos.report(photo) for photo in prepared])


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
    v: Annotated[
        str | None, Query(max_length=64, description="begin of its sha256: the answer may then be kept")
    ] = None,
) -> Response:
    """The stored picture (JPEG), or its thumbnail (WebP)."""
    row = photos.get(session, owner, concept_id, checked(photo_id))
    path = photos.file(studio.storage, row, "thumbnail" if size == "thumbnail" else "full")
    media_type = THUMBNAIL_TYPE if size == "thumbnail" else PICTURE_TYPE
    return send(
        request,
        path,
        media_type=media_type,
        sha256=f"{row.sha256}-{size}",
        name=row.display_name,
        changes=v != row.sha256[: photos.VERSION_DIGITS],
    )


@router.patch("/concepts/{id}/photos/{photo_id}", responses=problems(404, 409, 412, 413, 415, 507))
def edit_photo(
    *,
    concept_id: ItemId,
    photo_id: str,
    body: Annotated[PhotoPatch, Body(openapi_examples=_EDIT)],
    request: Request,
    session: Writes,
    owner: Owner,
    studio: Studied,
) -> Photo:
    """Turn a photo by quarters, then crop it; the former picture is not kept. 409 while a training uses it."""
    with studio.reading() as look:
        row = photos.changeable(look, owner, concept_id, checked(photo_id))
    require_match(request, photos.to_schema(row))
    edited = photos.edited(studio.storage, studio.darkroom, row, body)
    return photos.to_schema(photos.replace(session, studio.storage, edited))


@router.delete("/concepts/{id}/photos/{photo_id}", status_code=204, responses=problems(404, 409))
def delete_photo(concept_id: ItemId, photo_id: str, session: Writes, owner: Owner) -> None:
    """Remove a photo. 409 while a training uses it."""
    photos.remove(session, owner, concept_id, checked(photo_id))
