"""The form that starts a training: presets with their forecast, and fields generated from the method's schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from backend.errors import AppError
from backend.schemas.concepts import Concept
from backend.schemas.methods import CARDS
from backend.schemas.methods.card import MethodCard
from backend.schemas.trainings import TrainingCreate
from backend.services import bases, consent, trainings
from frontend.asking import text

METHOD = "custom-diffusion"
PREFIX = "param."
BY_PRESET = "by preset"
PRESETS = ("quick", "balanced", "thorough")
DEFAULT_PRESET = "quick"


@dataclass(frozen=True)
class PresetView:
    """A preset as a card: what it does, and about how long it takes here."""

    name: str
    steps: int
    prior_images: int
    expected_s: float | None
    basis: str


@dataclass(frozen=True)
class ParameterView:
    """One field of the advanced fold; ``value`` is what an empty one means, ``by preset`` where the presets differ."""

    name: str
    title: str
    description: str
    type: str
    value: Any
    given: str
    step: str
    minimum: float | None
    maximum: float | None


def view(
    session: Session, owner: str, concept: Concept, *, chosen: str, given: dict[str, str]
) -> dict[str, Any]:
    """Everything the template of the form needs."""
    card = CARDS[METHOD]
    fields = [_parameter(card, name, schema, given) for name, schema in _properties(card).items()]
    return {
        "method": card,
        "bases": bases.list_all(session),
        "presets": [_preset(session, owner, concept, card, name) for name in PRESETS],
        "chosen": chosen if chosen in PRESETS else DEFAULT_PRESET,
        "fields": fields,
        "field_keys": [PREFIX + field.name for field in fields],
        "needs_consent": concept.consent is None and consent.shows_person(concept.kind, concept.class_noun),
        "missing": _missing(card, len(concept.photos)),
    }


def wanted(concept_id: str, form: FormData) -> dict[str, Any]:
    """The fields of a ``TrainingCreate``; parameters left empty take the preset's value."""
    properties = _properties(CARDS[METHOD])
    params: dict[str, Any] = {}
    for name, schema in properties.items():
        value = text(form, PREFIX + name)
        if schema.get("type") == "boolean":
            if value and (value == "true") != schema.get("default"):
                params[name] = value == "true"
        elif value:
            params[name] = _number(value)
    body: dict[str, Any] = {"concepts": [concept_id], "method": METHOD, "params": params}
    for name in ("preset", "base", "seed"):
        if value := text(form, name):
            body[name] = value
    return body


def _number(value: str) -> int | float | str:
    """A number where it is one; the schema says what is wrong with the rest."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _properties(card: MethodCard) -> dict[str, dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = card.params_type.model_json_schema()["properties"]
    return properties


def _parameter(card: MethodCard, name: str, schema: dict[str, Any], given: dict[str, str]) -> ParameterView:
    key, boolean = PREFIX + name, schema.get("type") == "boolean"
    default = schema.get("default")
    differs = not boolean and any(preset.get(name, default) != default for preset in card.presets.values())
    return ParameterView(
        name=name,
        title=name.replace("_", " ").capitalize(),
        description=schema.get("description", "").capitalize(),
        type=schema.get("type", "string"),
        value=given[key] == "true" if boolean and key in given else BY_PRESET if differs else default,
        given=given.get(key, ""),
        step="1" if schema.get("type") == "integer" else "any",
        minimum=schema.get("minimum"),
        maximum=schema.get("maximum"),
    )


def _preset(session: Session, owner: str, concept: Concept, card: MethodCard, name: str) -> PresetView:
    """From a forecast where one can be made, else from the numbers of the preset."""
    params = card.params_type(**card.presets[name])
    steps, prior = getattr(params, "steps", 0), getattr(params, "prior_images", 0)
    body = TrainingCreate.model_validate({"concepts": [concept.id], "method": card.name, "preset": name})
    try:
        forecast = trainings.forecast(session, owner, body)
    except AppError:
        return PresetView(name, steps, prior, None, "")
    return PresetView(name, forecast.steps, forecast.prior_images, forecast.expected_s, forecast.basis)


def _missing(card: MethodCard, photos: int) -> str:
    """Why a training cannot start yet, as a sentence; empty when it can."""
    if photos >= card.min_photos:
        return ""
    more = card.min_photos - photos
    return f"Add {more} more photo{'s' if more > 1 else ''}: {card.title} needs at least {card.min_photos}."
