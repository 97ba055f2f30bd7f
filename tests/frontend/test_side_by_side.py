"""Before, merged and trained together: the same words and seeds beside one another."""

from __future__ import annotations

import re
from typing import Any

from fastapi.testclient import TestClient

from backend.models import LOCAL_OWNER
from backend.schemas.concepts import Concept
from backend.services import merges, weights
from backend.studio import Studio
from frontend import side_by_side
from tests.backend.workshop import Workshop
from tests.frontend.conftest import Api
from tests.frontend.markup import read
from tests.frontend.test_merges import NOBODY, merge


def test_side_by_side(client: TestClient, api: Api, workshop: Workshop, two: list[dict[str, Any]]) -> None:
    merge(client, two)
    made = workshop.merge()
    page = client.get(f"/merge/{made}")
    assert "a photo of" in page.text
    assert "no version that learned them together" in read(page.text).words
    api.train(*(each["id"] for each in two))
    together = workshop.train()
    sent = {"prompt": "@stark and @mia in the snow", "seed": "7", "num_images": "2"}
    answer = client.post(f"/merge/{made}", data=sent, follow_redirects=False)
    assert answer.status_code == 303
    address = answer.headers["location"].partition("#")[0]
    jobs = [workshop.job(each) for each in re.findall(r"job=([0-9a-f-]{36})", address)]
    used = [[each["file"]["id"] for each in job.spec["weights"]] for job in jobs]
    assert sorted(used[:2]) == sorted([[each["taught"]] for each in two])
    assert used[2:] == [[made], [together]]
    assert {job.spec["seed"] for job in jobs} == {7}
    assert {job.request["prompt"] for job in jobs} == {
        "@stark and @mia in the snow", "@stark and a dog in the snow", "a dog and @mia in the snow"
    }  # fmt: skip
    page = read(client.get(address).text)
    for title in ("Stark alone", "Mia alone", "Merged", "Trained together"):
        assert title in page.words
    assert page.inline == []
    assert page.tags.count("job-images") == 4
    workshop.draw()
    assert "job-images" in read(client.get(address).text).tags


def test_columns_without_a_seed_share_one(
    client: TestClient, workshop: Workshop, two: list[dict[str, Any]]
) -> None:
    merge(client, two)
    made = workshop.merge()
    sent = {"prompt": "@stark and @mia", "seed": "", "num_images": "1"}
    answer = client.post(f"/merge/{made}", data=sent, follow_redirects=False)
    assert answer.status_code == 303, read(answer.text).words
    address = answer.headers["location"].partition("#")[0]
    jobs = [workshop.job(each) for each in re.findall(r"job=([0-9a-f-]{36})", address)]
    [seed] = {job.spec["seed"] for job in jobs}
    assert len(jobs) == 3
    [field] = [each for each in read(client.get(address).text).fields if each.get("name") == "seed"]
    assert field["value"] == str(seed)


def test_the_yardstick_is_of_the_same_base(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio, two: list[dict[str, Any]]
) -> None:
    """One that was learned before the base model changed cannot be drawn any more."""
    merge(client, two)
    made = workshop.merge()
    api.train(*(each["id"] for each in two))
    fitting = workshop.train()
    api.train(*(each["id"] for each in two))
    other = workshop.train()

    def joint() -> str | None:
        with studio.reading() as session:
            return merges.jointly_trained(session, LOCAL_OWNER, weights.get(session, LOCAL_OWNER, made))

    for stale, expected in (({}, other), ({other}, fitting), ({other, fitting}, None)):
        with studio.writing() as session:
            for each in stale:
                row = weights.get(session, LOCAL_OWNER, each)
                row.base_hash = "cd" * 32
                row.manifest = {**row.manifest, "base_hash": row.base_hash}
        assert joint() == expected
    assert "no version that learned them together" in read(client.get(f"/merge/{made}").text).words


def test_wrong_comparisons(client: TestClient, workshop: Workshop, two: list[dict[str, Any]]) -> None:
    assert client.get(f"/merge/{two[0]['taught']}").status_code == 404  # not merged
    assert client.get(f"/merge/{NOBODY}").status_code == 404
    merge(client, two)
    made = workshop.merge()
    for sent, sentence in (
        ({"prompt": "@stark", "seed": "x", "num_images": "2"}, "Give a whole number."),
        ({"prompt": "@nobody", "seed": "1", "num_images": "2"}, "does not exist"),
    ):
        answer = client.post(f"/merge/{made}", data=sent)
        assert (answer.status_code, sentence in read(answer.text).words) == (422, True), answer.text
    assert client.get(f"/merge/{made}?job={NOBODY}").status_code == 404
    assert client.get("/api/v1/jobs?kind=generate").json()["items"] == []


def test_the_prompt_without_the_others(client: TestClient, api: Api, workshop: Workshop) -> None:
    def concept(token: str, noun: str) -> Any:
        return api.concept(token, token=token, class_noun=noun, kind="subject" if noun else "style")

    cases = {
        "@mia on the beach": "a cat on the beach",
        "the @mia cat and @miaow": "a cat and @miaow",
        "a dog, in the style of @ink": "a dog",
        "a @MIA by @ink here": "a cat here",
    }
    others = [Concept.model_validate(concept("mia", "cat")), Concept.model_validate(concept("ink", ""))]
    assert {given: side_by_side.alone(given, others) for given in cases} == cases
    assert side_by_side.prompt_of(others) == "a photo of @mia in the style of @ink"
