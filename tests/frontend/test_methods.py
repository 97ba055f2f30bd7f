"""Every method of the table can be chosen and told everything its schema knows, by forms that need no script."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend import migrate
from backend.main import create_app
from backend.schemas.methods import CARDS
from backend.schemas.methods.card import NEEDS
from backend.schemas.trainings import Preset, TrainingCreate
from backend.settings import Settings
from backend.studio import Studio
from frontend.schema_shapes import Shape, plain, properties
from tests.backend.conftest import ORIGIN
from tests.backend.workshop import Workshop, base
from tests.frontend.conftest import HOSTILE, Api
from tests.frontend.markup import Markup, read
from tests.frontend.test_forms import posted

LEAVES = ("whole", "number", "text", "tick", "choice", "several", "list", "mixed")


@dataclass(frozen=True)
class Shop:
    """A studio whose base can be taught with all methods, and the address of a concept with photos enough."""

    client: TestClient
    concept: str

    def jobs(self) -> list[str]:
        return [job["id"] for job in self.client.get("/api/v1/jobs?limit=200").json()["items"]]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    settings = Settings(data_dir=tmp_path_factory.mktemp("methods"), low_water_bytes=0, log_json=True)
    migrate.upgrade(settings)
    app = create_app(settings)
    with TestClient(app, base_url=ORIGIN) as client:
        Workshop(app.state.studio).open(base(methods=list(CARDS)))
        made = Api(client).concept("Stark", photos=max(card.min_photos for card in CARDS.values()))
        yield Shop(client, f"/concepts/{made['id']}")
    root.handlers[:] = handlers
    root.setLevel(level)


def page(client: TestClient, address: str) -> Markup:
    answer = client.get(address)
    assert answer.status_code == 200
    return read(answer.text)


def leaves(shapes: dict[str, Shape], prefix: str = "param.") -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        found |= leaves(dict(shape.inner), f"{prefix}{name}.") if shape.inner else {prefix + name: shape}
    return found


def other(shape: Shape, value: Any) -> Any:
    """A value that is allowed and differs from ``value``, small enough for any range."""
    if shape.kind == "tick":
        return not value
    if shape.kind == "choice":
        return next(each for each in shape.values if each != value)
    if shape.kind == "several":
        return [shape.values[-1]]
    if shape.kind in ("whole", "number"):
        low = shape.schema.get("minimum", 0)
        high = shape.schema.get("maximum", shape.schema.get("exclusiveMaximum", low + 2))
        if shape.kind == "whole":
            return low + 1 if value == low else low
        return low + (high - low) / (2 if value != low + (high - low) / 2 else 4)
    return "dog"


@pytest.mark.parametrize("method", CARDS)
def test_every_method_has_its_sentence_its_presets_and_a_field_for_each_parameter(
    shop: Shop, method: str
) -> None:
    card, shapes = CARDS[method], leaves(properties(CARDS[method].params_type.model_json_schema()))
    shown = page(shop.client, f"{shop.concept}?method={method}")
    for each in CARDS.values():  # the choice names all of them
        assert each.title in shown.words
        assert each.description in shown.words
    assert [one["value"] for one in shown.fields if one.get("name") == "preset"] == list(
        card.presets_for(None)
    )
    names = {one["name"] for one in shown.fields if "name" in one}
    assert {name for name in names if name.startswith("param.")} - {f"{key}.none" for key in shapes} == set(
        shapes
    )
    assert {shape.kind for shape in shapes.values()} <= set(LEAVES)
    assert shown.inline == []
    assert shown.unclosed == []
    assert len(shown.ids) == len(set(shown.ids))
    unnamed = [
        one for one in shown.fields if one["within-label"] != "True" and one.get("id") not in shown.labelled
    ]
    assert unnamed == []


@pytest.mark.parametrize("method", CARDS)
def test_every_field_says_what_it_means_takes_and_is_when_empty(shop: Shop, method: str) -> None:
    html = shop.client.get(f"{shop.concept}?method={method}").text
    for key, shape in leaves(properties(CARDS[method].params_type.model_json_schema())).items():
        hint = re.search(rf'id="{re.escape(key)}-hint">(.*?)</p>', html, re.S)
        assert hint, key
        said = read(hint[0]).words
        assert len(said) > 8, f"{key} needs a description"
        if shape.kind in ("whole", "number"):
            low = shape.schema.get("minimum", shape.schema.get("exclusiveMinimum"))
            assert low is None or plain(low) in said, key
            assert "empty: " in said, key


CLASHING = {"lora": ("use_dora",), "custom-diffusion": ("word",)}
"""What cannot be chosen beside everything else: DoRA with an orthogonal basis, no word whose attention could be kept in
its half.
"""


@pytest.mark.parametrize("method", CARDS)
def test_everything_typed_is_what_the_training_is_told(shop: Shop, method: str) -> None:
    """Every number and text that allows it is set to something else, by the form alone."""
    card = CARDS[method]
    usual = card.params_type(**card.presets_for(None)["quick"]).model_dump(mode="json")
    shapes = properties(card.params_type.model_json_schema())
    told = {
        name: other(shape, usual[name])
        for name, shape in shapes.items()
        if shape.kind in ("whole", "number", "tick", "choice", "several")
        and name not in CLASHING.get(method, ())
    }
    card.params_type.model_validate({**usual, **told}, strict=True)
    fields = {f"param.{name}": _typed(value) for name, value in told.items()}
    address = posted(shop.client, f"{shop.concept}/train", method=method, preset="quick", seed="7", **fields)
    job = shop.client.get("/api/v1" + address).json()
    assert job["request"]["method"] == method
    assert job["request"]["params"] == told
    assert card.title in page(shop.client, address).words


def _typed(value: Any) -> str | list[str]:
    if isinstance(value, bool):
        return ["false", "true"] if value else "false"
    if isinstance(value, list):
        return [plain(each) for each in value]
    return repr(value) if isinstance(value, float) else str(value)


@pytest.mark.parametrize("method", CARDS)
def test_an_untouched_form_trains_with_the_preset_alone(shop: Shop, method: str) -> None:
    """What the page sends when nobody touches it: hidden fields, ticks that are ticked, empty fields."""
    shown = page(shop.client, f"{shop.concept}?method={method}")
    fields: dict[str, str | list[str]] = {"preset": "thorough", "method": method}
    for one in shown.fields:
        ticked = one.get("type") not in ("checkbox", "radio") or "checked" in one
        if one.get("name", "").startswith("param.") and ticked:
            fields[one["name"]] = one.get("value", "")
    job = shop.client.get("/api/v1" + posted(shop.client, f"{shop.concept}/train", **fields)).json()
    assert (job["request"]["preset"], job["request"]["params"]) == ("thorough", {})


@pytest.mark.parametrize("method", CARDS)
def test_wrong_input_comes_back_in_words_with_what_was_typed(shop: Shop, method: str) -> None:
    before = shop.jobs()
    fields, wrong = {"method": method, "preset": "thorough", "seed": "sixteen"}, []
    for key, shape in leaves(properties(CARDS[method].params_type.model_json_schema())).items():
        if shape.kind in ("whole", "number"):
            fields[key] = HOSTILE
            wrong.append(key)
    answer = shop.client.post(f"{shop.concept}/train", data=fields)
    assert answer.status_code == 422
    shown = read(answer.text)
    assert shown.inline == []
    by_name = {one["name"]: one for one in shown.fields if "name" in one}
    for key in wrong:
        assert f"{key}-wrong" in shown.ids, key
        assert f"{key}-wrong" in by_name[key]["aria-describedby"]
        assert by_name[key]["value"] == HOSTILE
    assert by_name["seed"]["value"] == "sixteen"
    assert "seed-wrong" in shown.ids
    assert [one["value"] for one in shown.fields if one.get("name") == "preset" and "checked" in one] == [
        "thorough"
    ]
    assert '<details id="advanced" open>' in answer.text
    assert shop.jobs() == before


def test_methods_are_chosen_by_links(shop: Shop) -> None:
    shown = page(shop.client, shop.concept)
    for method, card in CARDS.items():
        link = next(
            one for one in shown.addresses if f"method={method}" in one and one.startswith("/concepts")
        )
        chosen = shop.client.get(link).text
        assert f'<input type="hidden" name="method" value="{method}">' in chosen
        assert "disabled" not in chosen.split('id="go"')[1].split("</form>")[0], card.title


def test_a_method_that_the_base_cannot_be_taught_is_shown_with_the_reason(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    address = f"/concepts/{api.concept('Stark')['id']}"
    for method, card in CARDS.items():
        workshop.open(base(methods=[name for name in CARDS if name != method]))
        reason = NEEDS[min(card.needs)] if card.needs else f"offers {card.title}"
        shown = page(client, f"{address}?method={next(name for name in CARDS if name != method)}")
        assert card.description in shown.words
        assert reason in shown.words
        assert not [one for one in shown.addresses if f"method={method}" in one]
        assert "<button disabled>" in client.get(f"{address}?method={method}").text
        assert reason in posted(client, f"{address}/train", 422, method=method, preset="quick")
        assert reason in page(client, "/concepts/new").words


@pytest.mark.parametrize("need", sorted({need for card in CARDS.values() for need in card.needs}))
def test_every_need_has_its_words(need: str) -> None:
    assert need in NEEDS


@pytest.mark.parametrize("method", ["nonsense", HOSTILE, "../lora"])
def test_an_unknown_method_is_told_and_nothing_is_trained(shop: Shop, method: str) -> None:
    before = shop.jobs()
    assert (
        "There is no such method"
        in page(shop.client, str(shop.client.get(shop.concept, params={"method": method}).url)).words
    )
    assert "There is no such method" in posted(shop.client, f"{shop.concept}/train", 422, method=method)
    assert "There is no such method" in posted(
        shop.client, "/concepts", 422, name="Rex", class_noun="dog", method=method
    )
    assert shop.jobs() == before


@pytest.mark.parametrize("method", CARDS)
def test_new_concept_hands_the_choice_on(shop: Shop, method: str) -> None:
    shown = page(shop.client, "/concepts/new")
    assert CARDS[method].description in shown.words
    preset: Preset = "thorough"
    assert [one["value"] for one in shown.fields if one.get("name") == f"preset.{method}"] == list(
        CARDS[method].presets_for(None)
    )
    fields = {"name": "Rex", "class_noun": "dog", "method": method, f"preset.{method}": preset}
    began = shop.client.get(posted(shop.client, "/concepts", **fields)).text
    assert f'<input type="hidden" name="method" value="{method}">' in began
    assert f'value="{preset}" checked' in began
    kept = shop.client.post("/concepts", data={**fields, "name": ""}).text
    assert f'name="method" value="{method}" checked' in kept
    assert f'name="preset.{method}" value="{preset}" checked' in kept


def test_presets_say_how_long_each_method_takes_here(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    """A forecast is of the method's own trainings: another one has none yet."""
    workshop.open(base(methods=list(CARDS)))
    concept, _ = api.taught(workshop)
    trained = str(TrainingCreate.model_fields["method"].default)
    untrained = next(name for name in CARDS if name != trained)
    assert re.search(
        r"Quick about \d+ (s|min)", page(client, f"/concepts/{concept['id']}?method={trained}").words
    )
    assert not re.search(r"Quick about", page(client, f"/concepts/{concept['id']}?method={untrained}").words)


def test_with_several_bases_the_form_asks_which(client: TestClient, api: Api, workshop: Workshop) -> None:
    workshop.open(
        base(methods=list(CARDS)),
        base("other", title="Other", hash="cd" * 32, methods=["custom-diffusion"]),
    )
    address = f"/concepts/{api.concept('Stark', photos=3)['id']}"
    blocked = next(card for name, card in CARDS.items() if name != "custom-diffusion")
    shown = page(client, f"{address}?base=other")
    assert "Other" in shown.words
    assert not [one for one in shown.addresses if f"method={blocked.name}" in one]
    assert [one for one in page(client, f"{address}?base=toy").addresses if f"method={blocked.name}" in one]
    job = client.get("/api/v1" + posted(client, f"{address}/train", preset="quick", base="other")).json()
    assert job["request"]["base"] == "other"
