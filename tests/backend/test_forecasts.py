"""What a training would take is judged part by part by earlier ones of this machine, and is not made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.models import Job
from backend.schemas.bases import Backbone
from backend.schemas.jobs import WorkSpent
from backend.schemas.methods import CARDS
from backend.services import forecasts
from backend.services.forecasts import Asked, Experience, Known, PictureSet, Subject
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop, base

DOG, CAT = Subject("subject", "dog"), Subject("subject", "cat")
NOUNS = ["dog", "cat", "owl", "teapot"]
METHOD = "custom-diffusion"
QUICK = CARDS[METHOD].params_type(**CARDS[METHOD].presets["small"]["quick"]).model_dump()
SIXTY = {
    "loading": (1.53, 1), "prior": (12.36, 40), "photos": (9.49, 60), "preview": (7.28, 3), "train": (38.6, 60),
    "calibration": (70.08, 336), "saving": (3.76, 1),
}  # fmt: skip
"""What Quick with 60 steps really took on toyworld, on two busy cores of a CPU: seconds, and pieces of work."""


def spent(took: dict[str, tuple[float, int]]) -> dict[str, WorkSpent]:
    return {work: WorkSpent(seconds=seconds, count=count) for work, (seconds, count) in took.items()}


def asked(subjects: Sequence[Subject] = (DOG,), *, calibrated: bool = True, **params: Any) -> Asked:
    return Asked({**QUICK, **params}, subjects, NOUNS, calibrated)


SHORT = asked(steps=60)
KNOWN = Known([Experience(METHOD, SHORT, spent(SIXTY), 700_000)], SHORT.pictures())


def test_a_longer_training_has_more_steps_and_previews_and_nothing_else() -> None:
    """By the steps alone it would be 299 s: the 120 s that 60 steps ran for, two and a half times."""
    forecast = forecasts.judged(KNOWN, METHOD, asked())
    rest = 1.53 + 9.49 + 3.76
    assert forecast.expected_s == pytest.approx(38.6 / 60 * 150 + 7.28 / 3 * 4 + 70.08 + rest, abs=0.1)
    assert forecast.expected_s == 191.1
    assert (forecast.images_to_draw, forecast.size_bytes) == (0, 700_000)
    assert "96 s for 150 steps, 10 s for previews, 70 s for finding the scale, 15 s for the rest" in (
        forecast.basis
    )


def test_a_training_like_one_before_takes_as_long() -> None:
    everything = sum(seconds for seconds, _ in SIXTY.values())
    assert forecasts.judged(Known(KNOWN.timed), METHOD, SHORT).expected_s == round(everything, 1)


def test_pictures_of_another_class_are_drawn_first() -> None:
    drawn, other = (forecasts.judged(KNOWN, METHOD, asked(subjects)) for subjects in ((DOG,), (CAT,)))
    assert (drawn.prior_images, other.prior_images, other.images_to_draw) == (16, 16, 16)
    assert drawn.expected_s is not None
    assert other.expected_s == pytest.approx(drawn.expected_s + 12.36, abs=0.11)
    assert "12 s for 16 pictures that the base model draws first" in other.basis


def test_pictures_beside_other_things_are_drawn_likewise() -> None:
    """Three other things, four pictures of each; a style has none."""
    alone, beside = (
        forecasts.judged(KNOWN, METHOD, asked()),
        forecasts.judged(KNOWN, METHOD, asked(companions=0.3)),
    )
    assert (beside.prior_images, beside.images_to_draw) == (16 + 12, 12)
    assert alone.expected_s is not None
    assert beside.expected_s == pytest.approx(alone.expected_s + 12.36 * 12 / 16, abs=0.11)
    assert asked([Subject("style", "art")], companions=0.3, prior="none").pictures() == {}
    assert asked(companions=0.3, prior="none", word="class-noun").pictures() == {}


def test_without_a_search_for_the_scale_it_is_shorter() -> None:
    plain = forecasts.judged(KNOWN, METHOD, asked(calibrated=False))
    assert plain.expected_s == pytest.approx(191.1 - 70.08, abs=0.11)
    two = forecasts.judged(KNOWN, METHOD, asked([DOG, DOG]))
    assert two.expected_s == pytest.approx(191.1 + 70.08, abs=0.11)


@pytest.mark.parametrize(
    ("known", "wanted", "said"),
    [
        (Known(), asked(), "Nothing has been timed with this method"),
        (Known([Experience("lora", SHORT, spent(SIXTY), 7)]), asked(), "Nothing has been timed with this method"),
        (
            Known([Experience(METHOD, SHORT, spent({"train": (9.0, 9), "preview": (1.0, 2)}), 7)]),
            asked(prior="none"),
            "No scale has been searched for",
        ),
        (
            Known([Experience(METHOD, SHORT, spent({"train": (9.0, 9), "preview": (1.0, 2)}), 7)]),
            asked(calibrated=False),
            "No pictures have been drawn",
        ),
    ],
)  # fmt: skip
def test_what_was_never_timed_is_not_guessed(known: Known, wanted: Asked, said: str) -> None:
    forecast = forecasts.judged(known, METHOD, wanted)
    assert (forecast.expected_s, forecast.size_bytes) == (None, None)
    assert said in forecast.basis
    assert forecast.basis.endswith("there is no estimate.")


def test_pictures_and_scale_may_have_been_timed_with_another_method() -> None:
    own = Experience(METHOD, SHORT, spent({"train": (60.0, 60), "preview": (3.0, 3), "loading": (2.0, 1)}), 7)
    other = Experience("lora", SHORT, spent(SIXTY), 9)
    forecast = forecasts.judged(Known([other, own]), METHOD, SHORT)
    assert forecast.expected_s == pytest.approx(60 + 3 + 2 + 12.36 + 70.08, abs=0.1)
    assert forecast.size_bytes == 7


def test_one_that_was_unusually_slow_does_not_count() -> None:
    slow = {work: (10 * seconds, count) for work, (seconds, count) in SIXTY.items()}
    lately = [Experience(METHOD, SHORT, spent(each), 7) for each in (slow, SIXTY, SIXTY)]
    assert forecasts.judged(Known(lately, KNOWN.drawn), METHOD, asked()).expected_s == 191.1


def test_a_method_without_steps_takes_as_long_as_before() -> None:
    took = spent({"train": (2.0, 8), "preview": (0.5, 2), "saving": (1.0, 1)})
    known = Known([Experience("rank-one", Asked({"views": 8}), took, 7)])
    forecast = forecasts.judged(known, "rank-one", Asked({"views": 9}))
    assert (forecast.steps, forecast.expected_s) == (0, 3.5)


@pytest.mark.parametrize(
    ("params", "used", "drawn"),
    [
        ({"prior_images": 24, "prior_weight": 0.0}, 0, 0),
        ({"prior_images": 24, "prior_weight": 1.0}, 24, 24),
        ({"prior_images": 22}, 24, 24),
        ({"prior_images": 24, "prior": "folder"}, 24, 0),
        ({"prior_images": 24, "prior": "prediction"}, 0, 0),
        ({"prior_images": 24, "prior": "none"}, 0, 0),
        ({}, 0, 0),
    ],
)
def test_prior_images_count_where_there_is_a_prior_term(
    params: dict[str, float | str], used: int, drawn: int
) -> None:
    forecast = forecasts.judged(Known(), METHOD, Asked(params, [DOG]))
    assert (forecast.prior_images, forecast.images_to_draw) == (used, drawn)


def test_pictures_are_shared_by_what_they_depend_on() -> None:
    assert asked([DOG, DOG]).pictures() == {PictureSet(("class", *DOG), 10): 16}
    assert len(asked([DOG, CAT]).pictures()) == 2
    assert asked().pictures().keys().isdisjoint(asked(word="class-noun").pictures())
    assert asked().pictures().keys().isdisjoint(asked(prior_steps=11).pictures())
    assert asked([Subject("subject", "")]).pictures() == {}


@pytest.mark.parametrize(
    ("steps", "every", "previews"), [(60, 50, 3), (150, 50, 4), (50, 50, 2), (9, 0, 2), (0, 0, 0)]
)
def test_previews_are_counted(steps: int, every: int, previews: int) -> None:
    assert Asked({"steps": steps, "preview_every": every}).previews == previews


@pytest.mark.parametrize("backbone", get_args(Backbone))
@pytest.mark.parametrize("method", CARDS)
def test_every_preset_has_a_forecast(method: str, backbone: Backbone) -> None:
    card = CARDS[method]
    for preset in card.presets[backbone].values():
        wanted = Asked(card.params_type(**preset).model_dump(), [CAT], NOUNS, calibrated=True)
        known = Known([Experience(method, SHORT, spent(SIXTY), 7)])
        assert forecasts.judged(known, method, wanted).expected_s is not None


def test_a_dry_run_knows_what_was_drawn_for_whom(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    workshop.open(base(class_nouns=NOUNS))
    stark, _ = api.taught(workshop)
    with studio.writing() as session:
        took = {work: each.model_dump() for work, each in spent(SIXTY).items()}
        session.execute(update(Job).values(metrics={"spent": took}))
    lion = api.concept("Lion", photos=3, class_noun="lion")
    told = {}
    for name, concept in (("known", stark), ("new", lion)):
        body = {"concepts": [concept["id"]], "preset": "balanced", "calibrate": True, "dry_run": True}
        told[name] = client.post("/api/v1/trainings", json=body).json()
    assert (told["known"]["images_to_draw"], told["new"]["images_to_draw"]) == (0, 24)
    assert told["new"]["expected_s"] > told["known"]["expected_s"] > 0
    shown = client.get("/api/v1/jobs").json()["items"][0]["metrics"]["spent"]
    assert shown["train"] == {"seconds": 38.6, "count": 60}
