"""The advanced fold: a field for every parameter of a method, from the JSON schema that the API shows too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel
from starlette.datastructures import ImmutableMultiDict

from backend.errors import AppError
from frontend.asking import text
from frontend.schema_shapes import Shape, parsed, plain, properties

PREFIX = "param."
NONE = ".none"
"""Ends the name of the tick that means null, or no entry of a list, where an empty field means something else."""
BY_PRESET = "by preset"
UNITS = {
    "steps": "steps",
    "batch_size": "photos",
    "prior_images": "pictures",
    "prior_steps": "solver steps",
    "preview_every": "steps",
}
"""Units of the parameters that mean the same in every method; others say theirs as ``unit`` in their schema."""
MEANINGS = {"max_grad_norm": "gradients are clipped to this norm"}
"""Of such parameters, where a schema leaves them without a description."""

Given = ImmutableMultiDict[str, Any]


@dataclass(frozen=True)
class Parameters:
    """What has parameters: a method on a base model, or a merge with its defaults as its only preset."""

    params_type: type[BaseModel]
    presets: Mapping[Any, dict[str, Any]]


@dataclass(frozen=True)
class Option:
    value: str
    label: str
    chosen: bool


@dataclass(frozen=True)
class FieldView:
    """One field. ``key`` is its name in the form, ``limits`` and ``empty`` are words: what it takes, what an empty one
    means. ``kind`` is the shape's; a tick whose value differs by preset is a choice."""

    key: str
    kind: str
    title: str
    description: str
    limits: str
    empty: str
    placeholder: str
    given: str
    options: tuple[Option, ...] = ()
    ticked: bool = False
    none: str = ""
    none_ticked: bool = False
    fields: tuple[FieldView, ...] = ()

    @property
    def facts(self) -> str:
        """What the field takes, and what an empty one means where it does not show that by itself."""
        shown = self.kind in ("tick", "group") or (self.kind == "choice" and self.placeholder != BY_PRESET)
        return "; ".join(filter(None, [self.limits, "" if shown else f"empty: {self.empty}"]))


@lru_cache(maxsize=64)
def shapes(params_type: Any) -> dict[str, Shape]:
    """The parameters of a method, by name."""
    return properties(params_type.model_json_schema())


def fields(card: Parameters, given: Given) -> tuple[FieldView, ...]:
    """The fields of the fold, with what was typed into them before."""
    return _fields(shapes(card.params_type), PREFIX, _usual(card), given)


def _fields(
    inner: Mapping[str, Shape], prefix: str, usual: Mapping[str, dict[str, Any]], given: Given
) -> tuple[FieldView, ...]:
    return tuple(
        _field(name, wanted, prefix + name, {preset: each.get(name) for preset, each in usual.items()}, given)
        for name, wanted in inner.items()
    )


def _field(name: str, wanted: Shape, key: str, usual: Mapping[str, Any], given: Given) -> FieldView:
    values = list(usual.values())
    agreed = all(value == values[0] for value in values)
    kind = "choice" if wanted.kind == "tick" and not (agreed and isinstance(values[0], bool)) else wanted.kind
    typed = text(given, key)
    nullable = wanted.nullable or (kind in ("several", "list") and not wanted.schema.get("minItems"))
    ticked = typed == "true" if typed else values[0] is True
    return FieldView(
        key=key,
        kind=kind,
        title=name.replace("_", " ").capitalize(),
        description=_sentence(wanted.schema.get("description", MEANINGS.get(name, ""))),
        limits=_limits(name, wanted),
        empty=_empty(usual, agreed),
        placeholder=plain(values[0]) if agreed else BY_PRESET,
        given=typed,
        options=_options(wanted, kind, given.getlist(key)),
        ticked=ticked,
        none=key + NONE if nullable and any(value not in (None, []) for value in values) else "",
        none_ticked=bool(text(given, key + NONE)),
        fields=_fields(
            wanted.inner or {}, key + ".", {preset: value or {} for preset, value in usual.items()}, given
        ),
    )


def _options(wanted: Shape, kind: str, typed: list[Any]) -> tuple[Option, ...]:
    if wanted.kind == "tick":
        values: tuple[tuple[str, str], ...] = (("true", "yes"), ("false", "no")) if kind == "choice" else ()
    else:
        values = tuple((plain(value), plain(value)) for value in wanted.values)
    return tuple(Option(value, label, value in typed) for value, label in values)


def _usual(card: Parameters) -> dict[str, dict[str, Any]]:
    """What every preset makes of the parameters."""
    return {name: card.params_type(**preset).model_dump(mode="json") for name, preset in card.presets.items()}


def _sentence(words: str) -> str:
    """With a capital and a full stop, and otherwise as the schema has it."""
    words = words.strip()
    return words and words[0].upper() + words[1:] + ("" if words.endswith((".", "?", "!")) else ".")


def _limits(name: str, wanted: Shape) -> str:
    """The range with its unit: ``1 to 64 photos``; empty where everything is allowed."""
    schema = wanted.schema
    unit = schema.get("unit", UNITS.get(name, ""))
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        said = [f"{plain(low)} to {plain(high)}"]
    else:
        bounds = (("at least", low), ("more than", above), ("at most", high), ("less than", below))
        said = [f"{words} {plain(bound)}" for words, bound in bounds if bound is not None]
    if wanted.kind == "text" and "maxLength" in schema:
        said = [f"at most {schema['maxLength']} characters"]
    if wanted.kind == "list":
        said = ["several, with commas between them"]
    if wanted.kind == "json":
        said = ["written as JSON"]
    return " ".join(filter(None, [", ".join(said), unit]))


def _empty(usual: Mapping[str, Any], agreed: bool) -> str:
    """What an empty field takes: one value, or one a preset."""
    if not agreed:
        return ", ".join(f"{plain(value)} ({preset.capitalize()})" for preset, value in usual.items())
    value = next(iter(usual.values()))
    return "nothing" if value == "" else plain(value)


def wanted(card: Parameters, preset: str, form: Given) -> dict[str, Any]:
    """The ``params`` of a request: what was filled in and differs from what an empty field means."""
    usual = _usual(card)
    return _wanted(shapes(card.params_type), PREFIX, list(usual.values()), usual.get(preset, {}), form)


def _wanted(
    inner: Mapping[str, Shape],
    prefix: str,
    usual: list[dict[str, Any]],
    chosen: Mapping[str, Any],
    form: Given,
) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, each in inner.items():
        key, typed = prefix + name, text(form, prefix + name)
        values = [preset.get(name) for preset in usual]
        if text(form, key + NONE):
            params[name] = None if each.nullable else []
        elif each.kind == "group":
            before = chosen.get(name) or {}
            told = _wanted(each.inner or {}, key + ".", [value or {} for value in values], before, form)
            if told:
                params[name] = {**before, **told}
        elif each.kind == "several":
            if ticked := [parsed(_one_of(each), value) for value in form.getlist(key) if value]:
                params[name] = ticked
        elif typed:
            value = parsed(each, typed)
            if each.kind != "tick" or any(value != other for other in values):
                params[name] = value
    return params


def _one_of(several: Shape) -> Shape:
    return Shape("choice", several.schema, values=several.values)


def beside(params_type: type[BaseModel], error: AppError) -> dict[str, str]:
    """Sentences of wrong parameters by the name of their field, and ``params`` for what belongs to none."""
    known = set(_keys(shapes(params_type), PREFIX))
    said: dict[str, str] = {}
    for wrong in error.errors:
        parts = wrong.pointer.strip("/").split("/")
        if parts[0] != "params":
            continue
        paths = (PREFIX + ".".join(parts[1:end]) for end in range(len(parts), 1, -1))
        said.setdefault(next((path for path in paths if path in known), "params"), wrong.detail)
    return said


def _keys(inner: Mapping[str, Shape], prefix: str) -> list[str]:
    found: list[str] = []
    for name, each in inner.items():
        found += [prefix + name, *_keys(each.inner or {}, f"{prefix}{name}.")]
    return found
