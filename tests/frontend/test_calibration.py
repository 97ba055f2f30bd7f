"""Calibration on pages: the scale of a version with its plot, the tick of the training form, notes of the job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend import migrate
from backend.main import create_app
from backend.schemas.calibration import Calibration, CalibrationPoint
from backend.services.job_events import Event, append, note
from backend.settings import Settings
from backend.studio import Studio
from frontend import phrases
from tests.backend.conftest import ORIGIN
from tests.backend.workshop import JUDGES, Workshop, base
from tests.frontend.conftest import Api
from tests.frontend.markup import Markup, read
from tests.frontend.test_forms import posted

TRIED = {0.6: (0.55, 1.1), 0.65: (0.82, 1.02), 0.7: (0.83, 0.95), 1.0: (1.4, -0.5)}
"""Subject and prompt similarity at each scale; the last beyond both ends of the plot."""


def calibration(scale: float = 0.65) -> dict[str, Any]:
    points = [
        CalibrationPoint(scale=at, subject_similarity=subject, prompt_similarity=prompt)
        for at, (subject, prompt) in TRIED.items()
    ]
    found = Calibration(scale=scale, points=points, prompts=["a", "b"], image_seeds=[11, 12], judges=JUDGES)
    return {"calibration": found.model_dump(mode="json")}


@pytest.fixture
def stark(api: Api, workshop: Workshop) -> str:
    """Address of a concept whose training waits."""
    workshop.open()
    concept = api.concept("Stark", photos=3)["id"]
    api.train(concept)
    return f"/concepts/{concept}"


def test_a_version_says_at_which_scale_it_is_drawn_and_what_else_was_tried(
    client: TestClient, workshop: Workshop, stark: str
) -> None:
    workshop.train(scale=0.65, report=calibration())
    html = client.get(stark).text
    page = read(html)
    assert "Drawn at scale 0.65: subject similarity 0.82, prompt similarity 1.02" in page.words
    assert "Scale 0.65 does best by both together" in page.words
    assert "2 pictures of each of 2 prompts at every scale; judged by two judges." in page.words
    assert page.inline == []
    [plot] = re.findall(r'<details id="scale-.*?</details>', html, re.S)
    [label] = re.findall(r'role="img" aria-label="([^"]*)"', plot)
    for scale, (subject, prompt) in TRIED.items():
        said = f"cale {scale:g}: subject similarity {subject:.2f}, prompt similarity {prompt:.2f}"
        assert said in label
        assert f"<title>S{said}</title>" in plot
    assert label.endswith("Kept: scale 0.65")
    lines = {
        kind: points.split() for kind, points in re.findall(r'<polyline class="(\w+)" points="(.*?)"', plot)
    }
    # 304 wide for scales 0.6 to 1, 120 high for measures -0.25 to 1.25; what lies beyond stays inside
    assert lines["subject"] == ["0.0,56.0", "38.0,34.4", "76.0,33.6", "304.0,0.0"]
    assert lines["prompt"] == ["0.0,12.0", "38.0,18.4", "76.0,24.0", "304.0,120.0"]
    assert re.findall(r'<line class="kept" x1="(.*?)" x2="(.*?)"', plot) == [("38.0", "38.0")]
    assert plot.count('<g class="kept">') == 1


def test_a_calibrated_version_that_stays_at_1_says_so(
    client: TestClient, workshop: Workshop, stark: str
) -> None:
    workshop.train(report=calibration(1.0))
    assert (
        "Drawn at scale 1: subject similarity 1.40, prompt similarity -0.50"
        in read(client.get(stark).text).words
    )


def test_a_version_whose_scale_came_with_it_names_the_scale_alone(
    client: TestClient, workshop: Workshop, stark: str
) -> None:
    workshop.train(scale=0.8)
    html = client.get(stark).text
    assert "Drawn at scale 0.8" in read(html).words
    assert 'class="calibration"' not in html


def test_of_a_version_that_nobody_calibrated_nothing_is_said(
    client: TestClient, workshop: Workshop, stark: str
) -> None:
    workshop.train()
    page = read(client.get(stark).text)
    assert "newest, used in prompts" in page.words
    assert "Drawn at" not in page.words


def test_of_concepts_taught_together_the_means_are_told(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    workshop.open()
    both = [api.concept(name, photos=3)["id"] for name in ("Stark", "Mia")]
    api.train(*both)
    workshop.train(scale=0.65, report=calibration())
    for concept in both:
        assert (
            "at every scale, means over the concepts;" in read(client.get(f"/concepts/{concept}").text).words
        )


def ticks(page: Markup) -> list[dict[str, str]]:
    return [each for each in page.fields if each.get("name") == "calibrate"]


@pytest.mark.parametrize(
    ("sent", "asked", "pinned"),
    [(["false", "true"], True, JUDGES.name), (["false"], False, None), ([], None, JUDGES.name)],
)
def test_the_tick_is_what_the_training_is_told(
    client: TestClient,
    api: Api,
    workshop: Workshop,
    sent: list[str],
    asked: bool | None,
    pinned: str | None,
) -> None:
    """As a browser sends it ticked and unticked, and a client that knows nothing of it."""
    workshop.open()
    concept = f"/concepts/{api.concept('Stark', photos=3)['id']}"
    [tick] = ticks(read(client.get(concept).text))
    assert ("checked" in tick, tick["value"]) == (True, "true")
    assert tick["aria-describedby"] in read(client.get(concept).text).ids
    address = posted(client, f"{concept}/train", preset="quick", calibrate=sent)
    job = workshop.job(address.rpartition("/")[2])
    assert job.request["calibrate"] is asked
    assert (job.spec["calibration"] or {}).get("name") == pinned
    shown = read(client.get(address).text).words
    assert f"Scale found by {pinned or 'nobody: it is 1'}" in shown
    assert JUDGES.hash not in shown


def test_a_form_that_comes_back_keeps_the_tick(client: TestClient, api: Api, workshop: Workshop) -> None:
    workshop.open()
    concept = f"/concepts/{api.concept('Stark', photos=3)['id']}"
    for sent, ticked in ((["false"], False), (["false", "true"], True)):
        answer = client.post(f"{concept}/train", data={"preset": "quick", "seed": "x", "calibrate": sent})
        assert answer.status_code == 422
        [tick] = ticks(read(answer.text))
        assert ("checked" in tick) is ticked


def test_the_tick_begins_as_the_studio_is_set(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, low_water_bytes=0, log_json=True, calibrate=False)
    migrate.upgrade(settings)
    app = create_app(settings)
    with TestClient(app, base_url=ORIGIN) as client:
        Workshop(app.state.studio).open()
        concept = f"/concepts/{Api(client).concept('Stark', photos=3)['id']}"
        [tick] = ticks(read(client.get(concept).text))
        assert "checked" not in tick
        job = client.get("/api/v1" + posted(client, f"{concept}/train", calibrate=["false", "true"])).json()
        assert job["request"]["calibrate"] is True


def test_without_judges_there_is_no_tick(client: TestClient, api: Api, workshop: Workshop) -> None:
    workshop.open(base(), base("other", title="Other", hash="cd" * 32, judges=None))
    concept = f"/concepts/{api.concept('Stark', photos=3)['id']}"
    shown = {name: ticks(read(client.get(f"{concept}?base={name}").text)) for name in ("toy", "other")}
    assert {name: len(found) for name, found in shown.items()} == {"toy": 1, "other": 0}
    job = client.get("/api/v1" + posted(client, f"{concept}/train", preset="quick", base="other")).json()
    assert job["request"]["calibrate"] is None


def test_the_job_says_what_it_does_and_why_there_is_no_scale(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    workshop.open()
    training = api.train(api.concept("Stark", photos=3)["id"])["id"]
    workshop.claim()
    why = "The scale stays 1. There is a single photo, and nothing to compare with."
    told = [
        Event("progress", {"phase": "calibrating", "step": 8, "total": 32, "rate": None, "eta_s": None}),
        note("not_calibrated", why),
    ]
    with studio.writing() as session:
        append(session, training, told, step=8, total_steps=32, phase="calibrating")
    page = read(client.get(f"/jobs/{training}").text)
    assert "Finding the scale that suits it, 25 %" in page.words
    happened, _, log = page.words.partition("What happened, in order")
    assert why in happened
    assert log.index("Finding the scale that suits it") < log.index(why)
    assert "not_calibrated" not in page.words
    assert phrases.ring("calibrating", 8, 32) is None
