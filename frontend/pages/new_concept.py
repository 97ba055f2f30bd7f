"""New concept ``/concepts/new``: photos, a name, what it is; or one of the sample sets with a single click."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import AppError, Invalid
from backend.schemas.concepts import ConceptCreate
from backend.services import bases, concepts, consent, photos, samples
from frontend.asking import Form, Owner, Studied, beside_fields, files, filled, text, valid
from frontend.rendering import PageRoute, render, see

router = APIRouter(route_class=PageRoute)
FIELDS = ("name", "kind", "class_noun", "token", "person", "consent")


@router.get("/concepts/new")
def new_concept(request: Request, studio: Studied) -> Response:
    return _page(request, studio, dict.fromkeys(FIELDS, ""), {})


def _page(
    request: Request, studio: Studied, values: dict[str, str], errors: dict[str, str], status: int = 200
) -> Response:
    with studio.reading() as session:
        nouns = sorted({noun for base in bases.list_all(session) for noun in base.class_nouns})
    return render(request, "concept_new.html", status, values=values, errors=errors, nouns=nouns)


@router.post("/concepts")
def create_concept(request: Request, studio: Studied, owner: Owner, form: Form) -> Response:
    """Photos come along only where there is no script; with it they follow one by one."""
    chosen = [(file.filename or "", file.file) for file in files(form, "files")]
    try:
        body = valid(ConceptCreate, _wanted(form))
        prepared = studio.darkroom.prepare(chosen) if chosen else []
        with studio.writing() as session:
            concept = concepts.create(session, owner, body)
            if prepared:
                photos.add(session, studio.storage, owner, concept.id, prepared)
    except AppError as error:
        said = beside_fields(error)
        if error.code == "token-taken":
            said = {"token": error.detail}
        values = {name: text(form, name) for name in FIELDS} | {"person": "yes" if _person(form) else ""}
        return _page(request, studio, values, said, error.status)
    return see(f"/concepts/{concept.id}")


def _wanted(form: Form) -> dict[str, Any]:
    """The fields of the request. Invalid when photos show a person who has not agreed."""
    wanted: dict[str, Any] = {"name": text(form, "name"), **filled(form, ("kind", "token"))}
    if wanted.get("kind") != "style":
        wanted |= filled(form, ("class_noun",))
        if _person(form):
            if not text(form, "consent"):
                raise Invalid.at("/consent", consent.REASON)
            wanted["consent"] = {"basis": "agreed"}
    return wanted


def _person(form: Form) -> bool:
    """Whether the photos show a person: as ticked, or by the noun."""
    return bool(text(form, "person")) or consent.shows_person(
        text(form, "kind") or "subject", text(form, "class_noun")
    )


@router.post("/concepts/samples/{slug}")
def create_from_sample(studio: Studied, owner: Owner, slug: str) -> Response:
    """A concept with the photos of a shipped set; its page has the training ready to start."""
    with studio.writing() as session:
        concept = samples.create_concept(session, studio.storage, owner, slug, studio.darkroom)
    return see(f"/concepts/{concept.id}?begin=quick")
