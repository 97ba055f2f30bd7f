"""What a JSON schema lets a form ask for: whole numbers, numbers, texts, ticks, choices, lists and groups of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

_WHOLE = re.compile(r"[+-]?[0-9]{1,15}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_PLAIN = {"integer": "whole", "number": "number", "string": "text", "boolean": "tick"}


@dataclass(frozen=True)
class Shape:
    """One parameter. ``kind``: whole, number, text, tick, choice, several (of ``values``), list (of ``item``), group
    (of ``inner``), mixed (a number or a text), or json for what no field can ask for better.
    """

    kind: str
    schema: Mapping[str, Any]
    nullable: bool = False
    values: tuple[Any, ...] = ()
    item: Shape | None = None
    inner: Mapping[str, Shape] | None = None


def properties(schema: Mapping[str, Any]) -> dict[str, Shape]:
    """The shapes of an object's properties, by name and in order."""
    definitions = schema.get("$defs", {})
    return {name: shape(each, definitions) for name, each in schema.get("properties", {}).items()}


def shape(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Shape:
    """The shape of a property of a schema with these ``$defs``."""
    if "$ref" in schema:
        named = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        return shape({**named, **{key: value for key, value in schema.items() if key != "$ref"}}, definitions)
    several = next((key for key in ("anyOf", "oneOf", "allOf") if key in schema), None)
    if several is not None:
        return _either(schema, several, definitions)
    if "enum" in schema or "const" in schema:
        return Shape("choice", schema, values=tuple(schema.get("enum") or [schema["const"]]))
    kind = schema.get("type", "")
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        return _list(schema, shape(schema["items"], definitions))
    if kind == "object" and "properties" in schema:
        return Shape("group", schema, inner=properties({**schema, "$defs": definitions}))
    return Shape(_PLAIN.get(kind, "json"), schema)


def _either(schema: Mapping[str, Any], key: str, definitions: Mapping[str, Any]) -> Shape:
    """One of several schemas: nullable where null is among them; the rest a shape where one is left."""
    around = {name: value for name, value in schema.items() if name != key}
    left = [each for each in schema[key] if each.get("type") != "null"]
    nullable = len(left) < len(schema[key])
    if len(left) == 1:
        return replace(shape({**left[0], **around}, definitions), nullable=nullable)
    kinds = {shape(each, definitions).kind for each in left}
    return Shape("mixed" if kinds <= {"whole", "number", "text", "choice"} else "json", around, nullable)


def _list(schema: Mapping[str, Any], item: Shape) -> Shape:
    if item.kind == "choice":
        return Shape("several", schema, values=item.values)
    if item.kind in ("whole", "number", "text", "mixed"):
        return Shape("list", schema, item=item)
    return Shape("json", schema)


def parsed(wanted: Shape, text: str) -> Any:
    """What a filled-in field means. A text that is not of the shape stays one: the schema says what is wrong."""
    read = _READERS.get(wanted.kind)
    return read(wanted, text) if read else text


def _number(_: Shape, text: str) -> int | float | str:
    if _WHOLE.fullmatch(text):
        return int(text)
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else text


def _choice(wanted: Shape, text: str) -> Any:
    return {plain(value): value for value in wanted.values}.get(text, text)


def _listed(wanted: Shape, text: str) -> Any:
    item = wanted.item or wanted
    return [parsed(item, part.strip()) for part in text.split(",") if part.strip()]


def _json(_: Shape, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text


_READERS: dict[str, Callable[[Shape, str], Any]] = {
    "whole": _number,
    "number": _number,
    "mixed": _number,
    "tick": lambda _, text: {"true": True, "false": False}.get(text, text),
    "choice": _choice,
    "list": _listed,
    "json": _json,
}


def plain(value: Any) -> str:
    """A value as a person types and reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    if isinstance(value, list):
        return ", ".join(plain(each) for each in value) or "none"
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value)
