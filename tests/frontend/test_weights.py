"""What another studio has learned is brought by a form; a file that cannot be used is told beside the field."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.backend.native_weights import manifest, native
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
