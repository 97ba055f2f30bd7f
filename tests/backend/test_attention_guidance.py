"""Attention guidance over HTTP: what is refused and in which words, what is pinned, and that it is drawn again."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.identifiers import new_id
from backend.schemas.generations import GuidedAttention
from backend.schemas.presence import Presence
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop

BOX: dict[str, Any] = {"x": 0, "y": 0, "width": 0.5, "height": 1, "prompt": "@stark"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": "a dog", "attention_guidance": 1}, "nobody-to-attend"),
        ({"prompt": "in the manner of @mimi", "attention_guidance": 1}, "nobody-to-attend"),
        ({"prompt": "@stark", "attention_guidance": 1, "regions": [BOX]}, "attention-with-boxes"),
        ({"prompt": "@stark", "attention_guidance": -0.1}, "invalid"),
        ({"prompt": "@stark", "attention_guidance": 10.5}, "invalid"),
        ({"prompt": "@stark", "attention_guidance": "NaN"}, "invalid"),
        ({"prompt": "@stark", "attention_guidance": "much"}, "invalid"),
    ],
)
def test_what_is_refused(
    client: TestClient, api: Api, workshop: Workshop, body: dict[str, Any], code: str
) -> None:
    api.taught(workshop)
    style = api.concept("Mimi", class_noun="art", kind="style", photos=3)
    api.train(style["id"])
    workshop.train()
    answer = client.post("/api/v1/generations", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert answer.json()["errors"][0]["pointer"] == "/attention_guidance"


def test_it_is_pinned_shown_and_repeated(client: TestClient, api: Api, workshop: Workshop) -> None:
    api.taught(workshop)
    job = workshop.job(api.generate("@stark on the moon", attention_guidance=0.5, num_images=1)["id"])
    assert job.spec["attention_guidance"] == 0.5
    assert workshop.job(api.generate("@stark on the moon")["id"]).spec["attention_guidance"] == 0.0
    [image] = workshop.draw()
    workshop.draw()
    assert client.get(f"/api/v1/images/{image}").json()["recipe"]["attention_guidance"] == 0.5
    assert "Attention guidance" in client.get(f"/images/{image}").text
    remixed = client.get(f"/compose?from={image}").text
    assert (
        'name="attention_guidance" type="number" min="0" max="10" step="0.1" placeholder="0" value="0.5"'
        in remixed
    )
    again = client.post(
        f"/images/{image}/again", follow_redirects=False, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert again.status_code == 303, again.text
    assert workshop.claim().spec["attention_guidance"] == 0.5


def test_where_words_act_is_shown_on_the_picture(client: TestClient, api: Api, workshop: Workshop) -> None:
    """Boxes over it, the words beside it, and on the small one what speaks for a fusion; without it as before."""
    concept, _ = api.taught(workshop)
    frame = {"x": 0.25, "y": 0, "width": 0.5, "height": 1}
    seen = {"concept": concept["id"], "token": "stark", "state": "fused", "score": 0.1, "box": frame}
    acting = {"share": 0.432, "box": frame, "same_place": ["rex"]}
    for attention in (acting, None):
        api.generate("@stark and @stark", num_images=1)
        [image] = workshop.draw([Presence.model_validate({**seen, "attention": attention})])
        recipe = client.get(f"/api/v1/images/{image}").json()["recipe"]
        assert recipe["presence"][0]["attention"] == attention
        page, gallery = client.get(f"/images/{image}").text, client.get("/gallery").text
        shown = attention is not None
        assert ('<rect class="hue-1" x="0.25"' in page) is shown
        assert ("43 %</span>, in the same place as @rex" in page) is shown
        assert "@stark fused" in gallery
        if shown:
            assert 'title="The word of @stark acts in the same place as @rex. "' in gallery


def test_what_cannot_be_told_is_said_on_the_picture(client: TestClient, api: Api, workshop: Workshop) -> None:
    """And nobody reads "all there"; who is missing beside it is named as ever."""
    concept, _ = api.taught(workshop)
    frame = {"x": 0, "y": 0, "width": 1, "height": 1}
    why = "the photos are too different from each other"

    def seen(state: str, score: float | None) -> Presence:
        told = {"concept": concept["id"], "token": "stark", "state": state, "score": score, "box": frame}
        return Presence.model_validate(told)

    api.generate("@stark and @stark", num_images=1)
    [image] = workshop.draw([seen("unknown", None), seen("present", 0.8)])
    assert client.get(f"/api/v1/images/{image}").json()["recipe"]["presence"][0]["state"] == "unknown"
    page, gallery = client.get(f"/images/{image}").text, client.get("/gallery").text
    assert f"@stark cannot be told: {why}" in page
    assert "@stark cannot be told</span>" in gallery
    assert f'title="Whether @stark is there cannot be told: {why}. "' in gallery
    assert "all there" not in gallery
    api.generate("@stark and @stark", num_images=1)
    workshop.draw([seen("unknown", None), seen("missing", 0.1)])
    assert "@stark cannot be told, @stark missing</span>" in client.get("/gallery").text


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"check": True, "guide_missing": True}, "invalid", "/guide_missing"),
        ({"guide_missing": True}, "invalid", "/guide_missing"),
        (
            {"check": True, "retry_until_present": 1, "guide_missing": True, "regions": [BOX]},
            "attention-with-boxes",
            "/guide_missing",
        ),
        ({"attention_concepts": ["{stark}"]}, "invalid", "/attention_concepts"),
        (
            {"attention_guidance": 1, "attention_concepts": ["{rex}"]},
            "nobody-to-attend",
            "/attention_concepts/0",
        ),
        (
            {"attention_guidance": 1, "attention_concepts": ["{stark}", "{nobody}"]},
            "nobody-to-attend",
            "/attention_concepts/1",
        ),
        ({"attention_guidance": 1, "attention_concepts": ["stark"]}, "invalid", "/attention_concepts/0"),
    ],
)
def test_whom_it_cannot_be_guided_to(
    client: TestClient, api: Api, workshop: Workshop, body: dict[str, Any], code: str, pointer: str
) -> None:
    ids = {"{stark}": api.taught(workshop)[0]["id"], "{rex}": api.taught(workshop, name="Rex")[0]["id"]}
    ids["{nobody}"] = new_id()
    if "attention_concepts" in body:
        body = {**body, "attention_concepts": [ids.get(each, each) for each in body["attention_concepts"]]}
    answer = client.post("/api/v1/generations", json={"prompt": "@stark on the moon", **body})
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_missing_ones_are_guided_to_and_the_recipe_says_it(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    """With the strength that was asked for the first try, else its own. The kept picture is drawn again as it was."""
    concept, _ = api.taught(workshop)
    looked = {"check": True, "retry_until_present": 2, "num_images": 1}
    for guidance, strength in ((0.5, 0.5), (0, 3.0)):
        asked = {**looked, "guide_missing": True, "attention_guidance": guidance}
        job = workshop.job(api.generate("@stark and @stark", **asked)["id"])
        assert job.spec["check"]["guidance_of_missing"] == strength
        assert (job.spec["attention_guidance"], job.spec["attention_concepts"]) == (guidance, [])
        workshop.draw()
    assert workshop.job(api.generate("@stark", **looked)["id"]).spec["check"]["guidance_of_missing"] == 0.0
    [image] = workshop.draw(attention=GuidedAttention(scale=3.0, concepts=[concept["id"]]))
    recipe = client.get(f"/api/v1/images/{image}").json()["recipe"]
    assert (recipe["attention_guidance"], recipe["attention_concepts"]) == (3.0, [concept["id"]])
    assert "<dd>3.0, to @stark</dd>" in client.get(f"/images/{image}").text
    for way in ("again", "vary"):
        drawn = client.post(f"/images/{image}/{way}", headers={"Sec-Fetch-Site": "same-origin"})
        assert drawn.status_code == 200, drawn.text
        spec = workshop.claim().spec
        assert (spec["attention_guidance"], spec["attention_concepts"]) == (3.0, [concept["id"]])


def test_compose_offers_it(client: TestClient, api: Api, workshop: Workshop) -> None:
    """A tick beside the retries; a picture whose attention was guided to some brings that into the prompt box."""
    concept, _ = api.taught(workshop)
    tick = '<input type="checkbox" name="guide_missing" value="true"'
    assert f"{tick}>" in client.get("/compose").text
    fields = {
        "prompt": "@stark on the moon",
        "check": "true",
        "retry_until_present": "2",
        "guide_missing": "true",
    }
    answer = client.post("/compose", data=fields, follow_redirects=False)
    assert f"{tick} checked>" in client.get(answer.headers["location"]).text
    assert "attention_concepts" not in client.get("/compose").text
    [*_, image] = workshop.draw(attention=GuidedAttention(scale=3.0, concepts=[concept["id"]]))
    page = client.get(f"/compose?from={image}&seed=same").text
    assert f'name="attention_concepts" value="{concept["id"]}" checked> Attention to @stark alone' in page
    for sent, pinned in (({"attention_guidance": "3"}, [concept["id"]]), ({}, [])):
        again = {"prompt": "@stark", "attention_concepts": concept["id"], **sent}
        client.post("/compose", data=again, follow_redirects=False)
        assert workshop.claim().spec["attention_concepts"] == pinned
