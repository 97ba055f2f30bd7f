"""The form that starts a training: a method, its presets with their forecast, and fields from the method's schema."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from backend.errors import AppError, Invalid, NotFound
from backend.schemas.bases import BaseModelInfo
from backend.schemas.concepts import Concept
from backend.schemas.methods import CARDS
from backend.schemas.methods.card import MethodCard
from backend.schemas.problems import FieldError
from backend.schemas.trainings import TrainingCreate
from backend.services import bases, concepts, consent, forecasts, method_params
from backend.services.forecasts import Subject
from frontend import method_choice, method_fields, phrases
from frontend.asking import beside_fields, text, valid
from frontend.method_choice import DEFAULT_PRESET, USUAL
from frontend.method_fields import PREFIX, Given

CALIBRATE = "calibrate"
WITH = "with"
"""Field and query parameter of the concepts that are taught together with the page's own."""


def view(
    session: Session,
    owner: str,
    concept: Concept,
    given: Given,
    errors: dict[str, str],
    *,
    calibrate: bool,
) -> dict[str, Any]:
    """Everything the template of the form needs. ``given`` is the page's query, or the form that came back;
    ``calibrate`` what the studio does where a request does not say.
    """
    known = bases.list_all(session)
    base = bases.likely(known, text(given, "base"))
    choices = method_choice.choices([base] if base else [], text(given, "method"))
    chosen = next(choice for choice in choices if choice.chosen)
    card = CARDS[chosen.name]
    preset = text(given, "preset")
    others = _taught_beside(session, owner, concept, given)
    calibrated = (text(given, CALIBRATE) or str(calibrate).lower()) == "true"
    subjects = [Subject(each.kind, each.class_noun) for each in (concept, *others)]
    presets = method_choice.presets(
        card, base, forecasts.recent(session, base), subjects, calibrate=calibrated
    )
    return {
        "method": chosen,
        "methods": choices,
        "bases": known,
        "base": base,
        "address": lambda **changes: _address(concept.id, base if len(known) > 1 else None, others, changes),
        "others": others,
        "presets": presets,
        "chosen": preset if preset in card.presets_for(base) else DEFAULT_PRESET,
        "fields": method_fields.fields(method_choice.parameters(card, base), given),
        "judged": base is not None and base.judges is not None,
        "calibrate": calibrated,
        "plain_names": "word" in card.params_type.model_fields,
        "opened": any(key.startswith(PREFIX) or key in ("seed", "params", CALIBRATE) for key in errors),
        "seed": text(given, "seed"),
        "agreed": bool(text(given, "consent")),
        "needs_consent": concept.consent is None and consent.shows_person(concept.kind, concept.class_noun),
        "missing": chosen.reason or _missing(card, len(concept.photos)) or _missing_of(card, others),
    }


def _taught_beside(session: Session, owner: str, concept: Concept, given: Given) -> list[Concept]:
    """The concepts that are to be taught together with this one; what is not the owner's is left out."""
    found = []
    for other in dict.fromkeys(each for each in given.getlist(WITH) if isinstance(each, str)):
        with suppress(NotFound):
            if other != concept.id:
                found.append(concepts.to_schema(session, concepts.get(session, owner, other)))
    return found


def wanted(concept_id: str, form: FormData, base: BaseModelInfo | None) -> dict[str, Any]:
    """The fields of a ``TrainingCreate``; parameters left empty take the preset's value."""
    method = text(form, "method") or USUAL
    body: dict[str, Any] = {"concepts": [concept_id, *form.getlist(WITH)], "method": method}
    for name in ("preset", "base", "seed", CALIBRATE):
        if value := text(form, name):
            body[name] = value
    if card := CARDS.get(method):
        body["params"] = method_fields.wanted(
            method_choice.parameters(card, base), text(form, "preset"), form
        )
    return body


def request(session: Session, concept_id: str, form: FormData) -> TrainingCreate:
    """What the form asks for. Invalid with everything that is wrong with its fields and parameters at once."""
    base = bases.likely(bases.list_all(session), text(form, "base"))
    values = wanted(concept_id, form, base)
    card, preset = CARDS.get(values["method"]), values.get("preset", DEFAULT_PRESET)
    found: list[FieldError] = []
    if card and preset in card.presets_for(base):
        try:
            method_params.checked(card, base, preset, values["params"])
        except AppError as error:
            found += error.errors
    try:
        body = valid(TrainingCreate, values)
    except AppError as error:
        raise Invalid(errors=[*error.errors, *found]) from None
    if found:
        raise Invalid(errors=found)
    return body


def beside(form: FormData, error: AppError) -> dict[str, str]:
    """What is wrong, by the name of the field it stands beside."""
    if error.code == "consent-required":
        return {"consent": consent.REASON}
    said = beside_fields(error)
    card = CARDS.get(text(form, "method") or USUAL)
    return {**said, **method_fields.beside(card.params_type, error)} if card else said


def _address(
    concept_id: str, base: BaseModelInfo | None, others: list[Concept], changes: dict[str, str]
) -> str:
    """The concept's page with another method or base chosen."""
    told = {**({"base": base.id} if base else {}), **changes}
    query = urlencode([*((WITH, each.id) for each in others), *told.items()])
    return f"/concepts/{concept_id}?{query}#train"


def _missing_of(card: MethodCard, others: list[Concept]) -> str:
    """The same of the concepts that are taught together with this one."""
    for each in others:
        if each.consent is None and consent.shows_person(each.kind, each.class_noun):
            return f"{each.name} shows a person, and nobody has said yet that they agreed. Say so on its page first."
        if said := _missing(card, len(each.photos)):
            return f"{each.name}: {said}"
    return ""


def _missing(card: MethodCard, photos: int) -> str:
    """Why a training cannot start yet, as a sentence; empty when it can."""
    if photos > card.max_photos:
        more = phrases.count(photos - card.max_photos, "photo")
        return f"Remove {more}: {card.title} takes at most {card.max_photos}."
    if photos >= card.min_photos:
        return ""
    more = phrases.count(card.min_photos - photos, "more photo")
    return f"Add {more}: {card.title} needs at least {card.min_photos}."
