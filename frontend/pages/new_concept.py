"""New concept ``/concepts/new``: photos, a name, what it is; or one of the sample sets with a single click."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import AppError, Invalid
from backend.schemas.bases import BaseModelInfo
from backend.schemas.concepts import ConceptCreate
from backend.schemas.methods import CARDS
from backend.services import bases, concepts, consent, forecasts, photos, samples
from backend.services.forecasts import Known
from backend.studio import Studio
from frontend import method_choice
from frontend.asking import Form, Owner, Studied, beside_fields, files, filled, text, valid
from frontend.method_choice import DEFAULT_PRESET, USUAL, MethodChoice, PresetView
from frontend.rendering import PageRoute, render, see

router = APIRouter(route_class=PageRoute)
FIELDS = ("name", "kind", "class_noun", "token", "person", "consent", "method")
PRESET = "preset."
"""With a method's name: the preset chosen for it."""


@router.get("/concepts/new")
def new_concept(request: Request, studio: Studied) -> Response:
    return _page(request, studio, FormData(), {})


def _page(
    request: Request, studio: Studio, given: FormData, errors: dict[str, str], status: int = 200
) -> Response:
    values = {name: text(given, name) for name in FIELDS}
    with studio.reading() as session:
        known = bases.list_all(session)
        base = bases.likely(known)
        lately = forecasts.recent(session, base)
        methods = method_choice.choices(known, values["method"])
        view = {
            "nouns": sorted({noun for base in known for noun in base.class_nouns}),
            "methods": methods,
            "presets": {
                each.name: _presets(each, base, lately, given, studio.settings.calibrate) for each in methods
            },
        }
    values |= {"person": "yes" if _person(given) else ""}
    return render(request, "concept_new.html", status, values=values, errors=errors, **view)


def _presets(
    method: MethodChoice, base: BaseModelInfo | None, lately: Known, given: FormData, calibrate: bool
) -> list[tuple[PresetView, bool]]:
    """The presets of a method and which one is chosen, for the base that the concept's page begins with."""
    found = method_choice.presets(CARDS[method.name], base, lately, calibrate=calibrate)
    chosen = text(given, PRESET + method.name) or DEFAULT_PRESET
    return [(preset, preset.name == chosen) for preset in found]


@router.post("/concepts")
def create_concept(request: Request, studio: Studied, owner: Owner, form: Form) -> Response:
    """Photos come along only where there is no script; with it they follow one by one."""
    chosen = [(file.filename or "", file.file) for file in files(form, "files")]
    try:
        body = valid(ConceptCreate, _wanted(form))
        if text(form, "method") not in ("", *CARDS):
            raise Invalid.at("/method", "There is no such method.")
        prepared = studio.darkroom.prepare(chosen) if chosen else []
        with studio.writing() as session:
            concept = concepts.create(session, owner, body)
            if prepared:
                photos.add(session, studio.storage, owner, concept.id, prepared)
    except AppError as error:
        said = beside_fields(error)
        if error.code == "token-taken":
            said = {"token": error.detail}
        return _page(request, studio, form, said, error.status)
    return see(f"/concepts/{concept.id}{_training(form)}")


def _training(form: Form) -> str:
    """The query that has the concept's page begin with the method and preset that were chosen here."""
    method = text(form, "method") or USUAL
    preset = text(form, PRESET + method) or DEFAULT_PRESET
    return (
        ""
        if (method, preset) == (USUAL, DEFAULT_PRESET)
        else f"?{urlencode({'method': method, 'preset': preset})}"
    )


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


def _person(form: FormData) -> bool:
    """Whether the photos show a person: as ticked, or by the noun."""
    return bool(text(form, "person")) or consent.shows_person(
        text(form, "kind") or "subject", text(form, "class_noun")
    )


@router.post("/concepts/samples/{slug}")
def create_from_sample(studio: Studied, owner: Owner, slug: str) -> Response:
    """A concept with the photos of a shipped set; its page has the training ready to start."""
    with studio.writing() as session:
        concept = samples.create_concept(session, studio.storage, owner, slug, studio.darkroom)
    return see(f"/concepts/{concept.id}?preset=quick")
