"""The gates of the Compose form: a pair of fields for each of the weights whose method knows a gate (Perfusion)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.schemas.concepts import Concept
from backend.schemas.generations import Gate
from backend.services import generations, weights
from frontend.asking import Form, text

PARTS = ("bias", "temperature")


@dataclass(frozen=True)
class GateField:
    """Weights that a prompt with one of ``tokens`` uses. ``own``: the gate they are drawn with; None where each of
    their words has another.
    """

    weights: str
    tokens: tuple[str, ...]
    own: Gate | None

    def name(self, part: str) -> str:
        """Of a field of the form."""
        return f"gate_{part}.{self.weights}"

    @property
    def label(self) -> str:
        return " and ".join(f"@{token}" for token in self.tokens)


def offered(session: Session, owner: str, known: Iterable[Concept], base: str) -> list[GateField]:
    """One for the newest weights of each gated concept on the base, or on any where none is named."""
    tokens: dict[str, list[str]] = {}
    for concept in known:
        newest = next((each for each in concept.weights if base in ("", each.base)), None)
        if newest is not None and newest.method in generations.GATED:
            tokens.setdefault(newest.id, []).append(concept.token)
    return [
        GateField(each, tuple(names), _own(weights.get(session, owner, each).manifest["params"]))
        for each, names in tokens.items()
    ]


def _own(params: Mapping[str, Any]) -> Gate | None:
    """Merged weights have a gate for each word."""
    drawn = [(each["bias"], each["temperature"]) for each in params.get("gates", {}).values()]
    gates = set(drawn or [(params.get("draw_bias"), params.get("draw_temperature"))])
    [bias, temperature] = gates.pop() if len(gates) == 1 else (None, None)
    return None if bias is None or temperature is None else Gate(bias=bias, temperature=temperature)


def chosen(form: Form, fields: Iterable[GateField], named: Collection[str]) -> list[dict[str, Any]]:
    """``weights`` of the request: those with a gate of the form's whose concept is ``named``. A number that is left
    out is the weights' own; Invalid where they have several.
    """
    wanted: list[dict[str, Any]] = []
    for field in fields:
        given = {part: value for part in PARTS if (value := text(form, field.name(part)))}
        if not given or not set(field.tokens) & set(named):
            continue
        if field.own is None and len(given) < len(PARTS):
            raise Invalid.at(
                f"/weights/{len(wanted)}/gate",
                f"The words of {field.label} have gates of their own. Give both numbers.",
            )
        wanted.append(
            {"id": field.weights, "gate": {**(field.own.model_dump() if field.own else {}), **given}}
        )
    return wanted


def values(fields: Iterable[GateField], used: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Of the fields, from the ``weights`` of a request or a recipe."""
    gates = {each["id"]: each["gate"] for each in used if each.get("gate")}
    return {
        field.name(part): str(gates[field.weights][part])
        for field in fields
        if field.weights in gates
        for part in PARTS
    }


def typed(form: Form, fields: Iterable[GateField]) -> dict[str, str]:
    """What stood in the fields."""
    return {field.name(part): text(form, field.name(part)) for field in fields for part in PARTS}
