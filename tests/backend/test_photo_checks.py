"""Photos are judged before they are stored: the same sentences as an upload's, and nothing is kept."""

from __future__ import annotations

from fastapi.testclient import TestClient
from PIL import Image

from backend.studio import Studio
from backend.uploads import near
from tests.backend.conftest import Api
from tests.backend.pictures import encoded, photo, scene

CHECK = "/api/v1/photos/check"


def test_the_same_sentences_as_an_upload_and_nothing_kept(
    client: TestClient, api: Api, studio: Studio
) -> None:
    blurred = encoded(scene(1).resize((8, 6)).resize((800, 600), Image.Resampling.BICUBIC))
    contents = (blurred, photo(3), photo(9, (600, 600)))
    files = [("files", (f"{n}.jpg", content)) for n, content in enumerate(contents)]
    told = client.post(CHECK, files=files)
    assert told.status_code == 200, told.text
    assert list(studio.storage.keys()) == []
    assert list((studio.storage.root / "staging").iterdir()) == []
    kept = api.photos(api.concept()["id"], *contents)["items"]
    for one, other in zip(told.json()["items"], kept, strict=True):
        assert {name: one[name] for name in ("width", "height", "warnings")} == {
            name: other[name] for name in ("width", "height", "warnings")
        }
    assert "Blurred" in told.json()["items"][0]["warnings"][0]


def test_fingerprints_tell_duplicates(client: TestClient) -> None:
    files = [("files", ("x.jpg", content)) for content in (photo(3), photo(3), photo(4))]
    first, second, third = (one["fingerprint"] for one in client.post(CHECK, files=files).json()["items"])
    assert near(first, second)
    assert not near(first, third)


def test_what_would_be_refused_is_refused(client: TestClient) -> None:
    answer = client.post(CHECK, files=[("files", ("x.jpg", b"%PDF-1.7"))])
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-image")
    assert answer.json()["errors"][0]["pointer"] == "/files/0"
