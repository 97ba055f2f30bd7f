"""The Compose form is filled from a picture or a job so that it asks for the same picture again."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.backend.workshop import Workshop
from tests.frontend.conftest import Api
from tests.frontend.markup import read


def typed(client: TestClient, address: str) -> dict[str, str]:
    """Values of the fields of the page."""
    fields = read(client.get(address).text).fields
    return {each["name"]: each.get("value", "") for each in fields if "name" in each}


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_is_kept_whatever_it_is(client: TestClient, api: Api, workshop: Workshop, seed: int) -> None:
    job = api.generate("a dog", seed=seed, num_images=1)["id"]
    [image] = workshop.draw()
    assert typed(client, f"/compose?from={image}&seed=same")["seed"] == str(seed)
    assert typed(client, f"/compose?job={job}")["seed"] == str(seed)
    assert typed(client, f"/compose?from={image}")["seed"] == ""


def test_what_nobody_asked_for_stays_empty(client: TestClient, api: Api, workshop: Workshop) -> None:
    """Empty fields show what they mean, and their parts of the form stay folded."""
    job = api.generate("a dog", num_images=1)["id"]
    [image] = workshop.draw()
    for address in (f"/compose?job={job}", f"/compose?from={image}"):
        fields = typed(client, address)
        unasked = ("base_share", "attention_guidance", "retry_until_present", "negative_prompt")
        assert {name: fields[name] for name in unasked} == dict.fromkeys(unasked, "")
        assert '<details id="boxes" class="boxes-fold">' in client.get(address).text
