"""Parameters of a method: a preset with what a request says instead, or every reason why they cannot be taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from backend.errors import Invalid
from backend.schemas.methods.card import Base, MethodCard
from backend.schemas.problems import FieldError

LONGEST_POINTER = 157
LONGEST_WORDS = 300
_SENTENCES = {
    "missing": "Must be given.",
    "extra_forbidden": "The method has no such parameter; remove it.",
    "int_type": "Must be a whole number.",
    "int_from_float": "Must be a whole number.",
    "float_type": "Must be a number.",
    "finite_number": "Must be a number.",
    "bool_type": "Must be true or false.",
    "string_type": "Must be a text.",
    "list_type": "Must be a list.",
    "literal_error": "Must be one of {expected}.",
    "greater_than_equal": "Must be at least {ge}.",
    "greater_than": "Must be more than {gt}.",
    "less_than_equal": "Must be at most {le}.",
    "less_than": "Must be less than {lt}.",
    "string_too_short": "Must have at least {min_length} characters.",
    "string_too_long": "Must have at most {max_length} characters.",
    "too_short": "Must have at least {min_length} of them.",
    "too_long": "Must have at most {max_length} of them.",
}


def checked(
    card: MethodCard, base: Base | None, preset: str, params: Mapping[str, Any], concepts: int = 1
) -> dict[str, Any]:
    """All parameters of the method on the base model. Invalid with a sentence at ``/params/<name>`` for each that is
    wrong.

    Steps of a preset are meant for one concept; of ``concepts`` that train jointly each gets as many (methods.md 5:
    250 for one, 500 for two).
    """
    offered = dict(card.presets_for(base)[preset])
    if concepts > 1 and "steps" in card.params_type.model_fields:
        field = card.params_type.model_fields["steps"]
        most = next(limit.le for limit in field.metadata if hasattr(limit, "le"))
        offered["steps"] = min(concepts * int(offered.get("steps", field.default)), most)
    return of_type(card.params_type, {**offered, **params})


def of_type(params_type: type[BaseModel], params: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of the type, defaults included. Invalid likewise."""
    try:
        found = params_type.model_validate(dict(params), strict=True)
    except ValidationError as error:
        wrong = [
            FieldError(pointer=_pointer(item["loc"]), detail=_sentence(item))
            for item in error.errors(include_input=False, include_url=False)
        ]
        raise Invalid(errors=wrong) from None
    return found.model_dump(mode="json")


def _pointer(place: tuple[int | str, ...]) -> str:
    return ("/params" + "".join(f"/{part}" for part in place))[:LONGEST_POINTER]


def _sentence(item: Mapping[str, Any]) -> str:
    """What is wrong with a parameter; a method's own check says it in its own words."""
    context = item.get("ctx", {})
    if item["type"] in ("value_error", "assertion_error"):
        return str(context.get("error", ""))[:LONGEST_WORDS] or "This value is not right."
    template = _SENTENCES.get(item["type"], "Must have the type that the method's schema says.")
    said = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
    return template.format(**said)
