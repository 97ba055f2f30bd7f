"""Photos are turned, cropped and removed by forms, without any script; what is wrong is told beside the side."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.backend.pictures import photo
from tests.backend.workshop import Workshop
from tests.frontend.conftest import Api
from tests.frontend.markup import read
from tests.frontend.test_forms import posted


def begun(api: Api) -> tuple[str, str]:
    """Address of a concept and of a photo of it (800 x 600)."""
    concept = api.concept("Stark")["id"]
    [shown] = api.photos(concept, photo(1, (800, 600)))["items"]
    return f"/concepts/{concept}", f"/concepts/{concept}/photos/{shown['id']}"


def size(client: TestClient, concept: str) -> tuple[int, int]:
    [shown] = client.get(f"/api/v1{concept}").json()["photos"]
    return shown["width"], shown["height"]


def test_a_photo_is_turned_and_removed_by_forms(client: TestClient, api: Api) -> None:
    concept, address = begun(api)
    page = read(client.get(concept).text)
    assert {f"{address}/rotate", f"{address}/crop", f"{address}/delete"} <= set(page.addresses)
    assert posted(client, f"{address}/rotate").startswith(f"{concept}#photo-")
    assert size(client, concept) == (600, 800)
    assert posted(client, f"{address}/delete") == concept
    assert client.get(f"/api/v1{concept}").json()["photos"] == []


def test_a_photo_is_cropped_by_percentages(client: TestClient, api: Api) -> None:
    concept, address = begun(api)
    page = client.get(f"{address}/crop")
    assert [one["name"] for one in read(page.text).fields] == ["left", "top", "right", "bottom"]
    posted(client, f"{address}/crop", left="10", top="", right="40", bottom="50")
    assert size(client, concept) == (400, 300)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"left": "half"}, "Give a number from 0 to 99."),
        ({"top": "-3"}, "Give a number from 0 to 99."),
        ({"left": "nan"}, "Give a number from 0 to 99."),
        ({"left": "60", "right": "40"}, "Nothing would be left of the photo."),
        ({"left": "90"}, "The shorter side must have at least 256 pixels."),
    ],
)
def test_a_wrong_crop_is_told_and_kept_in_the_field(
    client: TestClient, api: Api, fields: dict[str, str], sentence: str
) -> None:
    concept, address = begun(api)
    answer = client.post(f"{address}/crop", data=fields)
    assert answer.status_code == 422
    assert sentence in read(answer.text).words
    assert all(f'value="{value}"' in answer.text for value in fields.values())
    assert size(client, concept) == (800, 600)


def test_under_a_training_the_page_says_why_not(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = api.concept("Stark", photos=3)["id"]
    api.train(concept)
    shown = client.get(f"/api/v1/concepts/{concept}").json()["photos"][0]["id"]
    for way in ("rotate", "crop", "delete"):
        words = posted(client, f"/concepts/{concept}/photos/{shown}/{way}", 409, left="10")
        assert "A training uses these photos now." in words


def test_a_photo_that_is_not_there_is_a_lost_way(client: TestClient, api: Api) -> None:
    concept, _ = begun(api)
    assert client.get(f"{concept}/photos/nonsense/crop").status_code == 404
    assert client.post(f"{concept}/photos/nonsense/rotate").status_code == 404
