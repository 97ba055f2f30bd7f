"""Measures stand at the version they are about, with what 0 and 1 mean; a button asks for them, without script."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.backend.workshop import Workshop, base
from tests.frontend.conftest import Api
from tests.frontend.markup import read


@pytest.fixture
def shop(workshop: Workshop) -> Workshop:
    workshop.open(base(prompt_limit_tokens=120))
    return workshop


def test_a_version_is_measured_by_its_button(client: TestClient, api: Api, shop: Workshop) -> None:
    concept, weights = api.taught(shop)
    page = f"/concepts/{concept['id']}"
    assert "Measure how well it was learned" in read(client.get(page).text).words
    asked = client.post(f"{page}/evaluations", data={"weights": weights}, follow_redirects=False)
    job = client.get("/api/v1/jobs?kind=evaluate").json()["items"][0]["id"]
    assert (asked.status_code, asked.headers["location"]) == (303, f"/jobs/{job}")
    waiting = read(client.get(page).text)
    assert f"/jobs/{job}" in waiting.addresses
    assert "Measure how well" not in waiting.words
    assert "Measuring Stark" in read(client.get(f"/jobs/{job}").text).words
    shop.evaluate(0.7)
    for address in (page, f"/jobs/{job}"):
        words = read(client.get(address).text).words
        for told in ("Subject similarity 0.70 ± 0.05", "1: the photos among themselves", "Less is better"):
            assert told in words
    assert "judged by two judges" in read(client.get(page).text).words
    assert "Measure again" in read(client.get(page).text).words
    assert "Measured Stark" in read(client.get(f"/jobs/{job}").text).words


def test_judges_that_cannot_tell_say_so(client: TestClient, api: Api, shop: Workshop) -> None:
    concept, weights = api.taught(shop)
    client.post(f"/concepts/{concept['id']}/evaluations", data={"weights": weights})
    shop.evaluate(None)
    page = client.get(f"/concepts/{concept['id']}").text
    assert "they cannot tell" in read(page).words
    assert "None" not in read(page).words


def test_without_judges_there_is_no_button_and_a_form_is_refused(
    client: TestClient, api: Api, shop: Workshop
) -> None:
    concept, weights = api.taught(shop)
    shop.open(base(judges=None))
    page = f"/concepts/{concept['id']}"
    assert f"{page}/evaluations" not in read(client.get(page).text).addresses
    refused = client.post(f"{page}/evaluations", data={"weights": weights})
    assert refused.status_code == 422
    assert "Nobody judges pictures of this base model" in read(refused.text).words
    assert client.post(f"{page}/evaluations", data={"weights": "x"}).status_code == 422
