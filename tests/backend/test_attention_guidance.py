"""Attention guidance over HTTP: what is refused and in which words, what is pinned, and that it is drawn again."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

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
