"""Regions over HTTP: what is refused and in which words, what is pinned, and that a recipe draws them again."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.services import needs
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop

LEFT: dict[str, Any] = {"x": 0, "y": 0, "width": 0.5, "height": 1}
RIGHT: dict[str, Any] = {"x": 0.5, "y": 0, "width": 0.5, "height": 1}
DOG: dict[str, Any] = {**LEFT, "prompt": "red dog"}

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"regions": [{**DOG, "width": 0}]}, "box-empty", "/regions/0/width"),
    ({"regions": [DOG, {**DOG, "height": -0.2}]}, "box-empty", "/regions/1/height"),
    ({"regions": [{**DOG, "x": 0.6}]}, "box-outside", "/regions/0/x"),
    ({"regions": [{**DOG, "y": -0.1}]}, "box-outside", "/regions/0/y"),
    ({"regions": [{**DOG, "x": "NaN"}]}, "invalid", "/regions/0/x"),
    ({"regions": [{**DOG, "prompt": " "}]}, "region-without-prompt", "/regions/0/prompt"),
    ({"regions": [{**DOG, "prompt": "dog\u0000"}]}, "invalid", "/regions/0/prompt"),
    ({"regions": [{**DOG, "prompt": "@nobody"}]}, "unknown-token", "/regions/0/prompt"),
    ({"regions": [{**DOG, "prompt": "snow " * 60}]}, "prompt-too-long", "/regions/0/prompt"),
    ({"regions": [DOG] * 9}, "invalid", "/regions"),
    ({"regions": [DOG], "base_share": 1.5}, "invalid", "/base_share"),
    ({"regions": [{**DOG, "colour": "red"}]}, "invalid", "/regions/0/colour"),
]


@pytest.mark.usefixtures("workshop")
def test_wrong_regions(client: TestClient) -> None:
    for body, code, pointer in WRONG:
        answer = client.post("/api/v1/generations", json={"prompt": "on the moon", **body})
        assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
        assert answer.json()["errors"][0]["pointer"] == pointer
    assert client.get("/api/v1/jobs").json()["items"] == []


def test_concepts_stand_in_boxes_without_a_merge(client: TestClient, api: Api, workshop: Workshop) -> None:
    concepts, weights = zip(*(api.taught(workshop, name) for name in ("Stark", "Rex", "Fido")), strict=True)
    prompt = "a photo of @stark and @rex on the moon"
    boxes = [{**LEFT, "prompt": "@stark"}, {**RIGHT, "prompt": "@rex"}]
    job = api.generate(prompt, regions=boxes, base_share=0.1, num_images=1)
    spec = workshop.job(job["id"]).spec
    assert spec["text"] == "a photo of a dog and a dog on the moon"
    assert spec["layout"]["whole"] == []
    assert [each["text"] for each in spec["layout"]["regions"]] == [
        f"a photo of a <{name}> dog and a <{name}> dog on the moon" for name in ("stark", "rex")
    ]
    assert [each["weights"][0]["id"] for each in spec["layout"]["regions"]] == list(weights[:2])
    assert {each["file"]["id"] for each in spec["weights"]} == set(weights[:2])
    assert spec["layout"]["late_base_share"] == 0.1

    # a third concept that belongs to no box keeps its token in the picture's own text
    third = api.generate(f"{prompt} with @fido", regions=boxes, num_images=1)
    spec = workshop.job(third["id"]).spec
    assert spec["text"] == "a photo of a dog and a dog on the moon with <fido> dog"
    assert [each["id"] for each in spec["layout"]["whole"]] == [weights[2]]

    # the picture shows both concepts, and "same seed again" asks for the same regions
    [image] = workshop.draw()
    shown = client.get(f"/api/v1/images/{image}").json()
    assert set(shown["concepts"]) == {concept["id"] for concept in concepts[:2]}
    workshop.draw()
    again = client.post(
        f"/images/{image}/again", follow_redirects=False, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert again.status_code == 303, again.text
    repeated = workshop.claim().spec
    assert repeated["text"] == "a photo of a dog and a dog on the moon"
    assert repeated["layout"] == workshop.job(job["id"]).spec["layout"]


ABOVE: dict[str, Any] = {"x": 0, "y": 0, "width": 1, "height": 0.5}
BELOW: dict[str, Any] = {"x": 0, "y": 0.5, "width": 1, "height": 0.5}


@pytest.mark.parametrize(
    ("boxes", "asked", "passes"),
    [
        ((LEFT, RIGHT), {}, "one"),
        ((ABOVE, BELOW), {}, "each"),
        ((ABOVE, BELOW), {"region_passes": "one"}, "one"),
        ((LEFT, RIGHT), {"region_passes": "each"}, "each"),
    ],
)
def test_boxes_far_from_the_usual_places_get_a_pass_each(
    client: TestClient,
    api: Api,
    workshop: Workshop,
    boxes: tuple[dict[str, Any], ...],
    asked: dict[str, Any],
    passes: str,
) -> None:
    for name in ("Stark", "Rex"):
        api.taught(workshop, name)
    placed = [{**box, "prompt": name} for box, name in zip(boxes, ("@stark", "@rex"), strict=True)]
    job = api.generate("a photo of @stark and @rex on the moon", regions=placed, num_images=1, **asked)
    spec = workshop.job(job["id"]).spec
    assert spec["layout"]["passes"] == passes
    texts = [spec["text"], *(each["text"] for each in spec["layout"]["regions"])]
    assert (
        texts
        == {
            "one": [
                "a photo of a dog and a dog on the moon",
                *(f"a photo of a <{name}> dog and a <{name}> dog on the moon" for name in ("stark", "rex")),
            ],
            "each": [
                "a photo on the moon",
                *(f"a photo of a <{name}> dog on the moon" for name in ("stark", "rex")),
            ],
        }[passes]
    )
    answer = client.post(
        "/api/v1/generations", json={"prompt": "snow", "regions": placed, "region_passes": "two"}
    )
    assert answer.json()["errors"][0]["pointer"] == "/region_passes"


def test_a_region_may_have_weights_of_its_own(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept, old = api.taught(workshop)
    api.train(concept["id"], seed=2)
    new = workshop.train()
    boxes = [
        {**LEFT, "prompt": "@stark", "weights": [{"id": old, "scale": 0.5}]},
        {**RIGHT, "prompt": "@stark"},
    ]
    spec = workshop.job(api.generate("on the moon", regions=boxes)["id"]).spec
    assert spec["text"] == "a dog and a dog on the moon"
    used = [each["weights"] for each in spec["layout"]["regions"]]
    assert used == [[{"id": old, "scale": 0.5, "gate": None}], [{"id": new, "scale": 1.0, "gate": None}]]
    clash = {**LEFT, "prompt": "@stark", "weights": [{"id": old}, {"id": new}]}
    answer = client.post("/api/v1/generations", json={"prompt": "moon", "regions": [clash]}).json()
    assert (answer["code"], answer["errors"][0]["pointer"]) == ("tokens-clash", "/regions/0/weights")


def test_boxes_wait_for_concepts_that_are_being_taught(api: Api, workshop: Workshop, studio: Studio) -> None:
    concept = api.concept(photos=3)
    api.train(concept["id"])
    job = api.generate("@stark on the moon", regions=[{**LEFT, "prompt": "@stark"}])
    assert job["state"] == "blocked"
    weights = workshop.train()
    with studio.writing() as session:
        assert needs.settle(session) == 1
    spec = workshop.claim().spec
    assert [each["id"] for each in spec["layout"]["regions"][0]["weights"]] == [weights]
    assert spec["layout"]["whole"] == []


STARK = {**LEFT, "prompt": "@stark"}


@pytest.mark.parametrize(
    ("prompt", "boxes", "scale"),
    [
        ("a photo of @stark", [], 0.65),
        ("on the moon", [STARK], 0.65),
        ("@stark on the moon", [STARK], 0.65),
        ("@stark on the moon", [STARK, {**RIGHT, "prompt": "a teddy bear"}], 0.65),
        ("@stark and @rex", [], 1.0),
        ("@stark and @rex", [STARK], 1.0),
        ("on the moon", [STARK, {**RIGHT, "prompt": "@rex"}], 1.0),
    ],
)
def test_who_waits_gets_the_same_picture_as_who_comes_later(
    api: Api, workshop: Workshop, studio: Studio, prompt: str, boxes: list[dict[str, Any]], scale: float
) -> None:
    """Also where one of the concepts was taught before."""
    api.taught(workshop, "Rex")
    api.train(api.concept(photos=3)["id"])
    asked: dict[str, Any] = {"regions": boxes, "seed": 3}
    waiting = api.generate(prompt, **asked)
    assert waiting["state"] == "blocked"
    workshop.train(scale=0.65)
    with studio.writing() as session:
        assert needs.settle(session) == 1
    early, late = (workshop.job(job["id"]).spec for job in (waiting, api.generate(prompt, **asked)))
    acting = [each for region in (late["layout"] or {}).get("regions", ()) for each in region["weights"]]
    assert {each["scale"] for each in [*late["weights"], *acting]} == {scale}
    by_file = [
        {**spec, "weights": {each["file"]["id"]: each for each in spec["weights"]}} for spec in (early, late)
    ]
    assert by_file[0] == by_file[1]


def test_pictures_that_are_looked_at(client: TestClient, api: Api, workshop: Workshop) -> None:
    """Photos and judges are pinned, and the pictures are not drawn together with others."""
    concept, _ = api.taught(workshop)
    boxes = [{**LEFT, "prompt": "@stark"}, {**RIGHT, "prompt": "dog"}]
    job = workshop.job(
        api.generate("@stark and a dog on the moon", regions=boxes, check=True, retry_until_present=2)["id"]
    )
    check = job.spec["check"]
    assert [each["id"] for each in check["concepts"]] == [concept["id"]]
    assert len(check["concepts"][0]["photos"]) == 3
    assert (check["plain_text"], check["retries"]) == ("a dog and a dog on the moon", 2)
    assert check["regions"] == [[concept["id"]], []]
    assert job.batch_key is None
    plain = workshop.job(api.generate("a photo of @stark", check=True)["id"]).spec["check"]
    assert (plain["plain_text"], plain["regions"]) == ("a photo of dog", [])

    for body, code, pointer in (
        ({"prompt": "dog", "check": True}, "nobody-sought", "/check"),
        ({"prompt": "@stark", "retry_until_present": 2}, "invalid", "/retry_until_present"),
        ({"prompt": "@stark", "check": True, "retry_until_present": 9}, "invalid", "/retry_until_present"),
    ):
        answer = client.post("/api/v1/generations", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
        assert answer.json()["errors"][0]["pointer"] == pointer
