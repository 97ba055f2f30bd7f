"""Fields from any schema a method may have: what is not in today's methods, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from starlette.datastructures import FormData

from backend.errors import Invalid
from backend.schemas.methods import CARDS
from backend.schemas.methods.card import MethodCard
from backend.schemas.strict import Strict
from backend.services import method_params
from backend.services.forecasts import Known
from frontend import method_choice, method_fields
from frontend.method_fields import FieldView
from frontend.rendering import ENVIRONMENT
from tests.frontend.conftest import HOSTILE
from tests.frontend.markup import read


class Corner(Strict):
    share: Annotated[float, Field(ge=0, lt=1, description="of the whole")] = 0.5
    word: Annotated[str, Field(max_length=8, description=HOSTILE)] = ""


class AnyParams(Strict):
    """Without steps, and with every kind of field."""

    views: Annotated[int, Field(ge=1, description="views", json_schema_extra={"unit": "views"})] = 4
    layers: Annotated[list[Literal["cross", "self", "rest"]], Field(min_length=1, default=["cross"])]
    extra: Annotated[list[Literal["norms", "biases"]], Field(default=["norms"])]
    clip: Annotated[float | None, Field(gt=0)] = 1.0
    cap: Annotated[int | None, Field(ge=1)] = None
    mode: Literal["a", "b"] | None = None
    amount: int | Literal["auto"] = "auto"
    ranks: Annotated[list[int], Field(default=[4, 8])]
    token: bool = False
    corner: Corner = Corner()


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    "balanced": {"token": True},
    "thorough": {"views": 9, "layers": ["cross", "self"], "corner": {"share": 0.25, "word": "x"}},
}
CARD: MethodCard = replace(
    CARDS["custom-diffusion"],
    name="any",
    title="Any",
    params_type=AnyParams,
    presets={"small": PRESETS, "stable-diffusion": PRESETS},
)
SHOWN = method_choice.parameters(CARD, None)


def form(*fields: tuple[str, str]) -> FormData:
    return FormData(list(fields))


def told(preset: str, *fields: tuple[str, str]) -> dict[str, Any]:
    """What the form means, as the service takes it."""
    params = method_fields.wanted(SHOWN, preset, form(*fields))
    method_params.checked(CARD, None, preset, params)
    return params


def rendered(*fields: tuple[str, str], errors: dict[str, str] | None = None) -> str:
    shown = method_fields.fields(SHOWN, form(*fields))
    template = ENVIRONMENT.from_string(
        '{% from "_fields.html" import parameter %}{% for field in fields %}{{ parameter(field, errors) }}{% endfor %}'
    )
    return template.render(fields=shown, errors=errors or {})


def by_key(*fields: tuple[str, str]) -> dict[str, FieldView]:
    shown = method_fields.fields(SHOWN, form(*fields))
    return {each.key: each for field in shown for each in (field, *field.fields)}


def test_every_kind_of_field_is_found() -> None:
    kinds = {key.removeprefix("param."): field.kind for key, field in by_key().items()}
    assert kinds == {
        "views": "whole", "layers": "several", "extra": "several", "clip": "number", "cap": "whole",
        "mode": "choice", "amount": "mixed", "ranks": "list", "token": "choice", "corner": "group",
        "corner.share": "number", "corner.word": "text",
    }  # fmt: skip


def test_what_an_empty_field_takes() -> None:
    shown = by_key()
    assert shown["param.views"].facts == "at least 1 views; empty: 4 (Quick), 4 (Balanced), 9 (Thorough)"
    assert shown["param.layers"].empty == "cross (Quick), cross (Balanced), cross, self (Thorough)"
    assert shown["param.token"].empty == "no (Quick), yes (Balanced), no (Thorough)"
    assert shown["param.corner.share"].facts.startswith("at least 0, less than 1; empty: 0.5 (Quick)")
    assert shown["param.cap"].empty == "none"
    assert (shown["param.clip"].none, shown["param.cap"].none) == ("param.clip.none", "")
    assert (shown["param.extra"].none, shown["param.layers"].none) == ("param.extra.none", "")


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ([("param.views", "7")], {"views": 7}),
        ([("param.layers", "self"), ("param.layers", "rest")], {"layers": ["self", "rest"]}),
        ([("param.extra.none", "true")], {"extra": []}),
        ([("param.clip.none", "true")], {"clip": None}),
        ([("param.clip", "0.5")], {"clip": 0.5}),
        ([("param.mode", "b")], {"mode": "b"}),
        ([("param.amount", "3")], {"amount": 3}),
        ([("param.amount", "auto")], {"amount": "auto"}),
        ([("param.ranks", "1, 2,3")], {"ranks": [1, 2, 3]}),
        ([("param.token", "false")], {"token": False}),
        ([("param.corner.word", "12")], {"corner": {"share": 0.25, "word": "12"}}),
        ([("param.nobody", "1"), ("param.views", " ")], {}),
    ],
)
def test_what_a_filled_in_field_means(fields: list[tuple[str, str]], params: dict[str, Any]) -> None:
    """Also what a preset says of the rest of a group is kept."""
    assert told("thorough", *fields) == params


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("param.views", "1.5", "Must be a whole number."),
        ("param.views", "1_000", "Must be a whole number."),
        ("param.views", "9" * 5000, "Must be a whole number."),
        ("param.clip", "nan", "Must be a number."),
        ("param.clip", "1e999", "Must be a number."),
        ("param.layers", "all", "Must be one of 'cross', 'self' or 'rest'."),
        ("param.ranks", "1, two", "Must be a whole number."),
        ("param.corner.share", "1", "Must be less than 1."),
        ("param.corner.word", "x" * 9, "Must have at most 8 characters."),
    ],
)
def test_what_is_wrong_is_told_at_its_field(field: str, value: str, sentence: str) -> None:
    with pytest.raises(Invalid) as refused:
        told("quick", (field, value))
    said = method_fields.beside(AnyParams, refused.value)
    assert said == {field: sentence}
    html = rendered((field, value), errors=said)
    assert f'id="{field}-wrong"' in html
    typed = [one for one in read(html).fields if one.get("name") == field and one.get("value") == value]
    assert typed or by_key()[field].kind == "several"


def test_hostile_words_of_a_schema_are_inert() -> None:
    shown = read(rendered(("param.corner.word", HOSTILE)))
    assert shown.inline == []
    assert "svg" not in shown.tags
    assert HOSTILE in shown.words


def test_a_method_without_steps_has_presets_too() -> None:
    """Computed at once: nothing is forecast by steps, and no prior images are spoken of."""
    presets = method_choice.presets(CARD, None, Known())
    assert [each.facts for each in presets] == ["computed at once"] * 3
