"""Photos of a concept: add, turn, crop ``/concepts/{id}/photos/{photo_id}/crop``, remove; each by a form of its own."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import AppError, Invalid
from backend.schemas.concepts import PhotoPatch
from backend.schemas.problems import FieldError
from backend.services import concepts, photos
from backend.studio import Studio
from frontend.asking import Form, ItemId, Owner, Studied, beside_fields, checked_id, files, text, valid
from frontend.pages.concepts import concept_page
from frontend.rendering import PageRoute, render, see

router = APIRouter(route_class=PageRoute)
SIDES = ("left", "top", "right", "bottom")
QUARTER = 90


@router.post("/concepts/{id}/photos")
def add_photos(request: Request, studio: Studied, owner: Owner, id: ItemId, form: Form) -> Response:
    chosen = [(file.filename or "", file.file) for file in files(form, "files")]
    try:
        prepared = studio.darkroom.prepare(chosen)
        with studio.writing() as session:
            photos.add(session, studio.storage, owner, id, prepared)
    except AppError as error:
        said = {"": " ".join(wrong.detail for wrong in error.errors) or error.detail}
        return concept_page(request, studio, owner, id, errors=said, status=error.status)
    return see(f"/concepts/{id}")


@router.post("/concepts/{id}/photos/{photo_id}/rotate")
def rotate_photo(request: Request, studio: Studied, owner: Owner, id: ItemId, photo_id: str) -> Response:
    try:
        _edit(studio, owner, id, photo_id, PhotoPatch(rotate=QUARTER))
    except AppError as error:
        return concept_page(request, studio, owner, id, errors={"": error.detail}, status=error.status)
    return see(f"/concepts/{id}#photo-{photo_id}")


@router.get("/concepts/{id}/photos/{photo_id}/crop")
def show_crop(request: Request, studio: Studied, owner: Owner, id: ItemId, photo_id: str) -> Response:
    return _crop_page(request, studio, (owner, id, photo_id), dict.fromkeys(SIDES, "0"))


@router.post("/concepts/{id}/photos/{photo_id}/crop")
def crop_photo(
    *, request: Request, studio: Studied, owner: Owner, id: ItemId, photo_id: str, form: Form
) -> Response:
    try:
        _edit(studio, owner, id, photo_id, valid(PhotoPatch, {"crop": _box(form)}))
    except AppError as error:
        given = {side: text(form, side) for side in SIDES}
        place = (owner, id, photo_id)
        return _crop_page(request, studio, place, given, beside_fields(error), status=error.status)
    return see(f"/concepts/{id}#photo-{photo_id}")


@router.post("/concepts/{id}/photos/{photo_id}/delete")
def remove_photo(request: Request, studio: Studied, owner: Owner, id: ItemId, photo_id: str) -> Response:
    try:
        with studio.writing() as session:
            photos.remove(session, owner, id, checked_id(photo_id))
    except AppError as error:
        return concept_page(request, studio, owner, id, errors={"": error.detail}, status=error.status)
    return see(f"/concepts/{id}")


def _edit(studio: Studio, owner: str, concept_id: str, photo_id: str, wanted: PhotoPatch) -> None:
    with studio.reading() as look:
        row = photos.changeable(look, owner, concept_id, checked_id(photo_id))
    edited = photos.edited(studio.storage, studio.darkroom, row, wanted)
    with studio.writing() as session:
        photos.replace(session, studio.storage, edited)


def _box(form: Form) -> dict[str, float]:
    """What is kept, from the percentages that are cut away at each side. Invalid with a sentence for every side."""
    cut: dict[str, float] = {}
    wrong = []
    for side in SIDES:
        try:
            cut[side] = float(text(form, side) or "0") / 100
        except ValueError:
            cut[side] = -1.0
        if not 0 <= cut[side] < 1:
            wrong.append(FieldError(pointer=f"/{side}", detail="Give a number from 0 to 99."))
    if wrong:
        raise Invalid(errors=wrong)
    width, height = 1 - cut["left"] - cut["right"], 1 - cut["top"] - cut["bottom"]
    if min(width, height) <= 0:
        raise Invalid.at("/crop", "Nothing would be left of the photo. Cut away less.")
    return {"x": cut["left"], "y": cut["top"], "width": width, "height": height}


def _crop_page(
    request: Request,
    studio: Studio,
    place: tuple[str, str, str],
    given: dict[str, str],
    errors: dict[str, str] | None = None,
    *,
    status: int = 200,
) -> Response:
    """``place``: owner, concept, photo."""
    owner, concept_id, photo_id = place
    with studio.reading() as session:
        concept = concepts.get(session, owner, concept_id)
        photo = photos.to_schema(photos.get(session, owner, concept_id, checked_id(photo_id)))
    view = {"concept": concept, "photo": photo, "given": given, "errors": errors or {}}
    return render(request, "photo_crop.html", status, **view)
