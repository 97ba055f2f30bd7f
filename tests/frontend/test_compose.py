"""The Compose form is filled from a picture or a job so that it asks for the same picture again."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.backend.workshop import Workshop
from tests.frontend.conftest import Api
from tests.frontend.markup import read

BOX = {"x": 0, "y": 0, "width": 0.5, "height": 1, "prompt": "red dog"}


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
        unasked = (
            "base_share",
            "late_base_share",
            "attention_guidance",
            "retry_until_present",
            "negative_prompt",
        )
        assert {name: fields[name] for name in unasked} == dict.fromkeys(unasked, "")
        assert '<details id="boxes" class="boxes-fold">' in client.get(address).text


@pytest.mark.parametrize("shares", [(0.4, 0.0), (0.0, 0.6), (0.125, 0.3)])
def test_a_ramp_in_the_boxes_is_drawn_again(
    client: TestClient, api: Api, workshop: Workshop, shares: tuple[float, float]
) -> None:
    first, last = shares
    asked: dict[str, Any] = {"regions": [BOX], "base_share": first, "late_base_share": last}
    job = workshop.job(api.generate("on the moon", seed=3, num_images=1, **asked)["id"])
    [image] = workshop.draw()
    for address in (f"/compose?from={image}&seed=same", f"/compose?job={job.id}"):
        fields = typed(client, address)
        kept = {name: fields[name] for name in ("seed", "base_share", "late_base_share")}
        sent = {"prompt": "on the moon", "regions": json.dumps([BOX]), **kept}
        answer = client.post("/compose", data=sent, follow_redirects=False)
        assert answer.status_code == 303, answer.text
        again = workshop.job(answer.headers["location"].removeprefix("/compose?job="))
        assert again.spec["layout"] == job.spec["layout"]
        assert again.spec["seed"] == 3


def test_a_share_that_stays_the_same_is_said_once(client: TestClient, api: Api, workshop: Workshop) -> None:
    """Whoever changes it then changes it for the whole picture."""
    api.generate("on the moon", regions=[BOX], base_share=0.2, num_images=1)
    [image] = workshop.draw()
    fields = typed(client, f"/compose?from={image}")
    assert (fields["base_share"], fields["late_base_share"]) == ("0.2", "")


@pytest.mark.parametrize(
    ("box", "asked", "shown"),
    [
        ({"x": 0.5, "y": 0.5, "width": 0.4, "height": 0.4}, {}, ""),
        ({"x": 0, "y": 0, "width": 1, "height": 1}, {}, ""),
        ({"x": 0, "y": 0, "width": 1, "height": 1}, {"region_passes": "each"}, "each"),
        ({"x": 0.5, "y": 0.5, "width": 0.4, "height": 0.4}, {"region_passes": "one"}, "one"),
    ],
    ids=["far-by-itself", "usual-by-itself", "each-by-choice", "one-by-choice"],
)
def test_how_boxes_are_drawn_is_kept_where_somebody_chose_it(
    client: TestClient,
    api: Api,
    workshop: Workshop,
    box: dict[str, float],
    asked: dict[str, str],
    shown: str,
) -> None:
    """Else boxes that are moved get what they need where they are then; both draw the same picture again."""
    job = workshop.job(
        api.generate("on the moon", regions=[{**box, "prompt": "red dog"}], num_images=1, **asked)["id"]
    )
    [image] = workshop.draw()
    for address in (f"/compose?from={image}&seed=same", f"/compose?job={job.id}"):
        page = client.get(address).text
        [options] = re.findall(r'name="region_passes">(.*?)</select>', page)
        assert re.findall(r'value="(\w*)" selected', options) == [shown]
        regions = json.dumps([{**box, "prompt": "red dog"}])
        sent = {"prompt": "on the moon", "regions": regions, "region_passes": shown}
        answer = client.post("/compose", data=sent, follow_redirects=False)
        again = workshop.job(answer.headers["location"].removeprefix("/compose?job="))
        assert again.spec["layout"]["passes"] == job.spec["layout"]["passes"]
    answer = client.post(f"/images/{image}/again", follow_redirects=False)
    again = workshop.job(answer.headers["location"].rpartition("=")[2])
    assert again.spec["layout"] == job.spec["layout"]


def test_a_wrong_share_is_told_and_stays(client: TestClient, workshop: Workshop) -> None:
    answer = client.post("/compose", data={"prompt": "a dog", "late_base_share": "2"})
    assert (answer.status_code, "Give at most 1." in read(answer.text).words) == (422, True)
    [field] = [each for each in read(answer.text).fields if each.get("name") == "late_base_share"]
    assert field["value"] == "2"
    assert '<details id="boxes" class="boxes-fold" open>' in answer.text
