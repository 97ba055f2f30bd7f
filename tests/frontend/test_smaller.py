"""A version is made smaller by a form, with what was kept told beside the new one."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from frontend import phrases
from tests.backend.native_weights import native
from tests.backend.workshop import Workshop
from tests.frontend.conftest import Api
from tests.frontend.markup import read
from tests.frontend.test_calibration import calibration


@pytest.fixture
def version(client: TestClient, api: Api, workshop: Workshop) -> tuple[str, str]:
    """Page of a concept with an imported version, and address of the version's form."""
    concept = f"/concepts/{api.concept('Rex')['id']}"
    client.post(f"{concept}/weights", files={"file": ("x", native())})
    [address] = [one for one in read(client.get(concept).text).addresses if "/smaller" in one]
    return concept, address


def test_a_smaller_version_by_form(client: TestClient, workshop: Workshop, version: tuple[str, str]) -> None:
    concept, address = version
    answer = client.post(address, data={"size": "word", "precision": "int8"}, follow_redirects=False)
    assert answer.status_code == 303
    job = answer.headers["location"]
    assert "Making Rex smaller" in read(client.get(job).text).words
    assert workshop.job(job.rpartition("/")[2]).spec["compression"]["criterion"] == "token-only"
    workshop.compress()
    assert "Made Rex smaller" in read(client.get(job).text).words
    page = read(client.get(concept).text)
    assert "Made smaller: 1.5 MB to 300 kB , the word alone." in page.words
    assert "one rank for all would be off by 20.0 %" in page.words
    assert "mid cross keys" in page.words
    assert "2 of 4" in page.words
    assert len([one for one in page.addresses if "/smaller" in one]) == 2


@pytest.mark.parametrize(
    ("sent", "field", "value"),
    [
        ({"criterion": "nuclear", "amount": "60"}, "nuclear", 0.6),
        ({"criterion": "energy", "amount": "99,5"}, "energy", 0.995),
        ({"criterion": "rank", "amount": "3"}, "rank", 3),
        ({"criterion": "max_bytes", "amount": "2"}, "max_bytes", 2000),
    ],
)
def test_said_exactly(
    client: TestClient,
    workshop: Workshop,
    version: tuple[str, str],
    sent: dict[str, str],
    field: str,
    value: float,
) -> None:
    answer = client.post(version[1], data={"size": "word", **sent}, follow_redirects=False)
    request = workshop.job(answer.headers["location"].rpartition("/")[2]).request
    assert request[field] == value
    assert request["token_only"] is False


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ({"criterion": "rank", "amount": "5"}, "give at most 4"),
        ({"criterion": "rank", "amount": "0"}, "Give at least 1."),
        ({"criterion": "rank", "amount": "1.5"}, "Give a whole number."),
        ({"criterion": "energy", "amount": "many"}, "Give a number."),
        ({"criterion": "energy", "amount": "nan"}, "Give a number."),
        ({"criterion": "nuclear", "amount": "101"}, "at most 100."),
        ({"criterion": "max_bytes", "amount": "-3"}, "Give at least 1."),
        ({"criterion": "rank", "amount": "inf"}, "Give a number."),
        ({"criterion": "rank", "amount": ""}, "Give a number."),
        ({"criterion": "max_bytes", "amount": "1"}, "The words alone take"),
        ({}, "exactly one of"),
    ],
)
def test_what_is_wrong_stands_in_the_form(
    client: TestClient, version: tuple[str, str], sent: dict[str, str], sentence: str
) -> None:
    answer = client.post(version[1], data=sent)
    assert answer.status_code == 422
    assert sentence in read(answer.text).words
    assert client.get("/api/v1/jobs").json()["items"] == []


def test_a_version_that_cannot_be_smaller_has_no_form(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    concept, _ = api.taught(workshop)
    assert "/smaller" not in client.get(f"/concepts/{concept['id']}").text


def test_foreign_and_malformed_versions_are_missing(client: TestClient, version: tuple[str, str]) -> None:
    for wrong in ("019a0000-0000-7000-8000-000000000000", "x"):
        address = f"{version[0]}/weights/{wrong}/smaller"
        assert client.post(address, data={"size": "word"}).status_code == 404


@pytest.fixture
def calibrated(client: TestClient, api: Api, workshop: Workshop) -> tuple[str, str]:
    """As ``version``, learned here from photos, at scale 0.65."""
    concept = api.concept("Stark", photos=3)["id"]
    api.train(concept)
    workshop.train(content=native(), scale=0.65, report=calibration())
    page = read(client.get(f"/concepts/{concept}").text)
    [address] = [one for one in page.addresses if "/smaller" in one]
    return f"/concepts/{concept}", address


def test_what_became_of_the_similarities_is_told_and_put_in_a_table(
    client: TestClient, workshop: Workshop, calibrated: tuple[str, str]
) -> None:
    concept, address = calibrated
    answer = client.post(address, data={"size": "word", "compare": ["false", "true"]}, follow_redirects=False)
    job = answer.headers["location"]
    shown = read(client.get(job).text).words
    assert "Judges two judges" in shown
    assert "Similarity before as its calibration found it" in shown
    workshop.compress()
    words = read(client.get(concept).text).words
    assert (
        "Drawn at scale 0.65, subject similarity went from 0.82 to 0.79 and prompt similarity from 0.95 to 0.97."
        in words
    )
    assert "Before 1.5 MB 0.82 0.95 After 300 kB 0.79 0.97" in words
    assert (
        "The same 2 pictures of each of 4 prompts; judged by two judges. Before: as its calibration saw it."
        in words
    )
    assert words.count("Drawn at scale 0.65,") == words.count("Drawn at scale 0.65:") == 1
    assert "Drawn at scale 0.65 " not in words


def test_the_tick_says_whether_pictures_are_compared(
    client: TestClient, workshop: Workshop, calibrated: tuple[str, str], version: tuple[str, str]
) -> None:
    def ticks(page: str) -> list[dict[str, str]]:
        return [each for each in read(page).fields if each.get("name") == "compare"]

    concept, address = calibrated
    [tick] = ticks(client.get(concept).text)
    assert "checked" in tick
    assert ticks(client.get(version[0]).text) == []
    for sent, judged in ((["false", "true"], True), (["false"], False), ([], True)):
        answer = client.post(address, data={"size": "word", "compare": sent}, follow_redirects=False)
        assert bool(workshop.job(answer.headers["location"].rpartition("/")[2]).spec["judges"]) is judged
    wrong = client.post(address, data={"criterion": "rank", "amount": "x", "compare": ["false"]})
    assert "checked" not in ticks(wrong.text)[0]


def test_a_merge_that_was_cut_as_a_whole_names_all_its_layers() -> None:
    assert phrases.layer("merge") == "all layers together"
