"""Photos are turned and cropped in the darkroom; nothing else of them changes, and never under a training."""

from __future__ import annotations

import io
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from backend.maintenance import Maintenance
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.pictures import encoded, photo, scene
from tests.backend.test_uploads import difference, stored
from tests.backend.workshop import Workshop

NOBODY = "01900000-0000-7000-8000-000000000000"


def address(shown: dict[str, Any]) -> str:
    return str(shown["url"]).partition("/file")[0]


def edit(client: TestClient, shown: dict[str, Any], status: int = 200, **wanted: Any) -> dict[str, Any]:
    answer = client.patch(address(shown), json=wanted)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize(
    ("turn", "back"),
    [
        (90, Image.Transpose.ROTATE_270),
        (180, Image.Transpose.ROTATE_180),
        (270, Image.Transpose.ROTATE_90),
    ],
)
def test_turned_clockwise(client: TestClient, api: Api, turn: int, back: Image.Transpose) -> None:
    [before] = api.photos(api.concept()["id"], encoded(scene(3), quality=95, subsampling=0))["items"]
    after = edit(client, before, rotate=turn)
    expected = scene(3).transpose(back)
    assert (after["id"], after["width"], after["height"]) == (before["id"], *expected.size)
    assert difference(stored(client, after), expected) < 4
    thumbnail = Image.open(io.BytesIO(client.get(after["thumbnail_url"]).content))
    assert thumbnail.size == expected.size


def test_cropped_in_shares_of_the_turned_picture(client: TestClient, api: Api) -> None:
    picture = scene(4, (800, 600))
    [before] = api.photos(api.concept()["id"], encoded(picture, quality=95, subsampling=0))["items"]
    after = edit(client, before, rotate=90, crop={"x": 0.25, "y": 0.5, "width": 0.5, "height": 0.5})
    expected = picture.transpose(Image.Transpose.ROTATE_270).crop((150, 400, 450, 800))
    assert (after["width"], after["height"]) == expected.size == (300, 400)
    assert difference(stored(client, after), expected) < 4


def test_the_address_changes_with_the_picture(client: TestClient, api: Api) -> None:
    """Files may be kept for ever under their address, so an edited photo must have another one."""
    [before] = api.photos(api.concept()["id"], photo(1))["items"]
    after = edit(client, before, rotate=180)
    assert after["url"] != before["url"]
    assert after["thumbnail_url"] != before["thumbnail_url"]
    assert "immutable" in client.get(after["url"]).headers["cache-control"]
    assert client.get(before["url"]).content == client.get(after["url"]).content
    for stale in (before["url"], address(before) + "/file"):
        assert "immutable" not in client.get(stale).headers["cache-control"]


def test_the_former_files_go(client: TestClient, api: Api, studio: Studio) -> None:
    [before] = api.photos(api.concept()["id"], photo(1))["items"]
    former = set(studio.storage.keys())
    edit(client, before, rotate=90)
    Maintenance(studio.settings, studio.database, studio.storage, studio.doorbell).sweep()
    assert len(list(studio.storage.keys())) == 2
    assert former.isdisjoint(studio.storage.keys())
    assert list((studio.storage.root / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        ({"rotate": 45}, "/rotate"),
        ({"rotate": "90"}, "/rotate"),
        ({"crop": {"x": 0.5, "y": 0, "width": 0.6, "height": 1}}, "/crop"),
        ({"crop": {"x": -0.1, "y": 0, "width": 0.5, "height": 1}}, "/crop/x"),
        ({"crop": {"x": 0, "y": 0, "width": 0, "height": 1}}, "/crop/width"),
        ({"crop": {"x": 0, "y": 0, "width": 0.1, "height": 0.1}}, "/crop"),
        ({"crop": {"x": 0, "y": 0, "width": 1, "height": 1, "angle": 3}}, "/crop/angle"),
        ({"flip": True}, "/flip"),
    ],
)
def test_wrong_edits_change_nothing(
    client: TestClient, api: Api, studio: Studio, wanted: dict[str, Any], pointer: str
) -> None:
    [before] = api.photos(api.concept()["id"], photo(1, (800, 600)))["items"]
    kept = set(studio.storage.keys())
    problem = edit(client, before, 422, **wanted)
    assert problem["errors"][0]["pointer"] == pointer
    assert set(studio.storage.keys()) == kept
    assert list((studio.storage.root / "staging").iterdir()) == []


def test_an_empty_edit_keeps_the_photo_as_it_is(client: TestClient, api: Api) -> None:
    [before] = api.photos(api.concept()["id"], photo(1))["items"]
    assert edit(client, before) == before
    assert edit(client, before, rotate=0, crop={"x": 0, "y": 0, "width": 1, "height": 1}) == before


def test_not_while_a_training_uses_it(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = api.concept(photos=3)
    shown = client.get(f"/api/v1/concepts/{concept['id']}").json()["photos"][0]
    api.train(concept["id"])
    assert edit(client, shown, 409, rotate=90)["code"] == "training-locked"
    workshop.train()
    assert edit(client, shown, rotate=90)["width"] == shown["height"]


def test_a_photo_that_is_not_there(client: TestClient, api: Api) -> None:
    [mine] = api.photos(api.concept()["id"], photo(1))["items"]
    other = api.concept("Other")["id"]
    for concept, photo_id in ((other, mine["id"]), (NOBODY, mine["id"]), (other, "nonsense")):
        answer = client.patch(f"/api/v1/concepts/{concept}/photos/{photo_id}", json={"rotate": 90})
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_duplicates_are_told_of_the_photos_that_are_there_now(client: TestClient, api: Api) -> None:
    concept = api.concept()["id"]
    first, second = api.photos(concept, photo(3), photo(3))["items"]
    assert "Almost the same" in " ".join(second["warnings"])
    turned = edit(client, second, rotate=180)
    assert "Almost the same" not in " ".join(turned["warnings"])
    edit(client, second, rotate=180)
    client.delete(address(first))
    [left] = client.get(f"/api/v1/concepts/{concept}").json()["photos"]
    assert "Almost the same" not in " ".join(left["warnings"])


def test_a_cut_subject_is_told_and_edits_judge_anew(client: TestClient, api: Api) -> None:
    picture = Image.new("RGB", (900, 600), (200, 205, 210))
    picture.paste(scene(2, (500, 320)).point(lambda value: value // 2), (0, 140))
    [cut] = api.photos(api.concept()["id"], encoded(picture))["items"]
    assert "at the left" in " ".join(cut["warnings"])
    closer = edit(client, cut, crop={"x": 0.02, "y": 0.3, "width": 0.45, "height": 0.45})
    assert "Cut off" not in " ".join(closer["warnings"])
    assert "Small" in " ".join(closer["warnings"])
