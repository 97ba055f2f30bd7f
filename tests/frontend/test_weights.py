"""What another studio has learned is brought by a form; a file that cannot be used is told beside the field."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.backend.native_weights import manifest, native
from tests.backend.pictures import photo
from tests.backend.workshop import Workshop
from tests.frontend.conftest import Api
from tests.frontend.markup import read


def test_a_version_by_form(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = f"/concepts/{api.concept('Rex')['id']}"
    assert f"{concept}/weights" in read(client.get(concept).text).addresses
    answer = client.post(f"{concept}/weights", files={"file": ("x", native())}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{concept}#versions")
    page = read(client.get(concept).text)
    assert "250 steps on toy, imported just now" in page.words
    assert not [one for one in page.addresses if "None" in one]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not a weights file", "This is not a safetensors file"),
        (native(manifest(base_hash="cd" * 32)), "learned on a base model that is not here"),
        (b"", "Choose a file."),
    ],
)
def test_what_is_wrong_stands_beside_the_field(
    client: TestClient, api: Api, workshop: Workshop, content: bytes, sentence: str
) -> None:
    concept = f"/concepts/{api.concept('Rex')['id']}"
    sent = {"file": ("x.safetensors" if content else "", content)}
    answer = client.post(f"{concept}/weights", files=sent)
    assert answer.status_code == 422
    assert sentence in read(answer.text).words
    assert 'aria-describedby="file-wrong"' in answer.text


def test_an_imported_concept_has_a_gate(client: TestClient, api: Api, workshop: Workshop) -> None:
    """First its letter and a sentence, then the newest picture that was drawn of it; a photo goes before both."""
    client.post("/api/v1/weights/import", files={"file": ("x", native())}).raise_for_status()
    [concept] = [each["id"] for each in client.get("/api/v1/concepts").json()["items"]]
    page = client.get(f"/concepts/{concept}").text
    assert "It came from another studio without photos." in read(page).words
    name = client.get(f"/api/v1/concepts/{concept}").json()["name"]
    for address in (f"/concepts/{concept}", "/concepts", "/", "/compose"):
        assert (
            f'<span class="gate-empty" aria-hidden="true"><b>{name[0]}</b></span>' in client.get(address).text
        )
    token = client.get(f"/api/v1/concepts/{concept}").json()["token"]
    api.generate(f"@{token}", num_images=2)
    newest = workshop.draw()[-1]
    picture = f"/api/v1/images/{newest}/thumbnail"
    assert client.get(f"/api/v1/concepts/{concept}").json()["picture_url"] == picture
    for address in (f"/concepts/{concept}", "/concepts", "/"):
        shown = client.get(address).text
        assert f'<img src="{picture}"' in shown
        assert "gate-empty" not in shown.split("gate-row")[0].split('id="train"')[0]
    assert client.get(picture).status_code == 200
    api.photos(concept, photo())
    shown_now = client.get(f"/api/v1/concepts/{concept}").json()
    assert shown_now["picture_url"] == shown_now["photos"][0]["thumbnail_url"] != picture


def test_a_version_is_there_for_other_programs(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = f"/concepts/{api.concept('Rex')['id']}"
    client.post(f"{concept}/weights", files={"file": ("x", native())})
    addresses = read(client.get(concept).text).addresses
    [word] = [one for one in addresses if "?format=" in one]
    assert word.endswith("?format=embedding")
    answer = client.get(word)
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith("attachment; filename*=utf-8''mia-toy-")
    assert client.get(word.replace("embedding", "kohya")).json()["code"] == "export-first"
    assert client.get(word.replace("embedding", "ckpt")).status_code == 422
