"""Presets fit the base model: over HTTP, from what the worker says of the base to the pinned spec of a training."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.models import BaseModel, Job
from backend.schemas.bases import Backbone
from backend.schemas.methods import CARDS
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop, base

SD = base(
    "sd", title="Stable Diffusion", family="sd15", backbone="stable-diffusion", hash="cd" * 32, methods=list(CARDS)
)  # fmt: skip


@pytest.fixture
def concept(client: TestClient, api: Api, workshop: Workshop) -> str:
    workshop.open(base(methods=list(CARDS)), SD)
    return str(api.concept("Stark", photos=5)["id"])


def pinned(client: TestClient, studio: Studio, **body: Any) -> dict[str, Any]:
    """The parameters that a training gets."""
    answer = client.post("/api/v1/trainings", json=body)
    assert answer.status_code == 202, answer.text
    with studio.reading() as session:
        job = session.get(Job, answer.json()["id"])
        assert job is not None
        return dict(job.spec["params"])


def test_bases_name_their_backbone_and_methods_the_presets_of_each(client: TestClient, concept: str) -> None:
    shown = {each["id"]: each["backbone"] for each in client.get("/api/v1/bases").json()["items"]}
    assert shown == {"toy": "small", "sd": "stable-diffusion"}
    for method in client.get("/api/v1/methods").json()["items"]:
        of = method["presets_by_backbone"]
        assert set(of) == set(get_args(Backbone))
        assert method["presets"] == of["small"] == CARDS[method["name"]].presets["small"]
        assert of["stable-diffusion"] == CARDS[method["name"]].presets["stable-diffusion"]


@pytest.mark.parametrize("method", CARDS)
def test_a_training_takes_the_presets_of_its_base(
    client: TestClient, studio: Studio, concept: str, method: str
) -> None:
    card = CARDS[method]
    found = {
        name: pinned(client, studio, concepts=[concept], method=method, base=name) for name in ("toy", "sd")
    }
    for name, backbone in (("toy", "small"), ("sd", "stable-diffusion")):
        usual = card.params_type(**card.presets[backbone]["balanced"])  # type: ignore[index]
        assert found[name] == usual.model_dump(mode="json")
    changed = pinned(client, studio, concepts=[concept], method=method, base="sd", params={"steps": 7})
    assert changed == {**found["sd"], "steps": 7}


def test_a_joint_training_has_the_steps_of_the_bases_preset_for_each(
    client: TestClient, studio: Studio, api: Api, concept: str
) -> None:
    other = api.concept("Mia", photos=5, token="mia")["id"]
    params = pinned(client, studio, concepts=[concept, other], method="custom-diffusion", base="sd")
    assert params["steps"] == 500  # the paper's number for two


def test_a_forecast_is_of_the_bases_preset(client: TestClient, concept: str) -> None:
    body = {"concepts": [concept], "method": "custom-diffusion", "preset": "balanced", "dry_run": True}
    told = {
        name: client.post("/api/v1/trainings", json={**body, "base": name}).json() for name in ("toy", "sd")
    }
    assert (told["toy"]["steps"], told["toy"]["prior_images"]) == (300, 24)
    assert (told["sd"]["steps"], told["sd"]["prior_images"]) == (250, 200)


def test_a_base_that_an_earlier_worker_registered_keeps_the_presets_it_had(
    client: TestClient, studio: Studio, concept: str
) -> None:
    with studio.writing() as session:
        row = session.get(BaseModel, "sd")
        assert row is not None
        before = {name: value for name, value in row.description.items() if name != "backbone"}
        session.execute(update(BaseModel).where(BaseModel.id == "sd").values(description=before))
    shown = {each["id"]: each["backbone"] for each in client.get("/api/v1/bases").json()["items"]}
    assert shown["sd"] == "small"


def test_an_unknown_preset_is_still_told(client: TestClient, concept: str) -> None:
    body = {"concepts": [concept], "method": "lora", "preset": "faces", "base": "sd"}
    answer = client.post("/api/v1/trainings", json=body)
    assert answer.status_code == 422
    assert answer.json()["code"] == "unknown-preset"
