"""The training form follows the base model: its presets, what its fields are when empty, and what it sends."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from backend.models import Job
from backend.schemas.bases import BaseModelInfo
from backend.schemas.methods import CARDS
from backend.services import forecasts
from backend.studio import Studio
from frontend import phrases
from tests.backend.test_backbones import SD
from tests.backend.workshop import Workshop, base
from tests.frontend.conftest import Api
from tests.frontend.markup import read
from tests.frontend.test_forms import posted


@pytest.fixture
def address(api: Api, workshop: Workshop) -> str:
    workshop.open(base(methods=list(CARDS)), SD)
    return f"/concepts/{api.concept('Stark', photos=5)['id']}"


@pytest.mark.parametrize("method", CARDS)
def test_another_base_changes_what_the_presets_and_the_fields_say(
    client: TestClient, address: str, method: str
) -> None:
    card = CARDS[method]
    for name, backbone in (("toy", "small"), ("sd", "stable-diffusion")):
        html = client.get(f"{address}?method={method}&base={name}").text
        presets = card.presets[backbone]  # type: ignore[index]
        shown = read(html)
        hint = re.search(r'id="param.steps-hint">(.*?)</p>', html, re.S)
        assert hint
        for preset, values in presets.items():
            steps = card.params_type(**values).steps  # type: ignore[attr-defined]
            assert phrases.count(steps, "step") in shown.words
            assert f"{steps} ({preset.capitalize()})" in read(hint[0]).words


@pytest.mark.parametrize("method", CARDS)
def test_an_untouched_form_trains_with_the_preset_of_its_base_alone(
    client: TestClient, studio: Studio, address: str, method: str
) -> None:
    shown = read(client.get(f"{address}?method={method}&base=sd").text)
    fields: dict[str, str | list[str]] = {"preset": "balanced", "method": method, "base": "sd"}
    for one in shown.fields:
        ticked = one.get("type") not in ("checkbox", "radio") or "checked" in one
        if one.get("name", "").startswith("param.") and ticked:
            fields[one["name"]] = one.get("value", "")
    job_id = posted(client, f"{address}/train", **fields).removeprefix("/jobs/")
    with studio.reading() as session:
        job = session.get(Job, job_id)
        assert job is not None
        card = CARDS[method]
        usual = card.params_type(**card.presets["stable-diffusion"]["balanced"])
        assert (job.request["params"], job.spec["params"]) == ({}, usual.model_dump(mode="json"))


def test_a_tick_that_differs_from_the_bases_preset_is_sent(client: TestClient, address: str) -> None:
    """DreamBooth computes activations again on Stable Diffusion by every preset: without the tick it does not."""
    fields: dict[str, str | list[str]] = {
        "method": "dreambooth", "preset": "quick", "param.gradient_checkpointing": "false"
    }  # fmt: skip
    told = {
        name: client.get("/api/v1" + posted(client, f"{address}/train", base=name, **fields)).json()
        for name in ("toy", "sd")
    }
    assert told["sd"]["request"]["params"] == {"gradient_checkpointing": False}
    assert told["toy"]["request"]["params"] == {}


def test_new_concept_shows_the_presets_of_the_base_its_page_begins_with(
    client: TestClient, workshop: Workshop
) -> None:
    workshop.open(SD)
    shown = read(client.get("/concepts/new").text)
    assert "250 steps, 200 ordinary pictures to compare with" in shown.words


def test_the_start_page_forecasts_by_the_preset_of_the_base(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    """For a class that nobody taught; experience of another base does not count."""
    workshop.open(base(methods=list(CARDS)))
    api.taught(workshop)
    with studio.reading() as session:
        toy = base_info("toy", client)
        assert forecasts.usual_s(session, toy) == 150 * 2.0 + 4 * 1.0 + 16.0 + 0.5
        assert forecasts.usual_s(session, toy, calibrate=True) == 329.5
        assert forecasts.usual_s(session, None) is None
        workshop.open(SD)
        assert forecasts.usual_s(session, base_info("sd", client)) is None


def base_info(name: str, client: TestClient) -> BaseModelInfo:
    found = {each["id"]: each for each in client.get("/api/v1/bases").json()["items"]}
    return BaseModelInfo.model_validate(found[name])


def test_presets_with_a_purpose_say_it(client: TestClient, workshop: Workshop) -> None:
    workshop.open(SD)
    shown = read(client.get("/concepts/new").text)
    assert "Together for pictures of several concepts: 250 steps" in shown.words
    assert "Faces for people: 750 steps" in shown.words
