"""What a training would take is judged by earlier ones of its method, and is not made up."""

from __future__ import annotations

from typing import get_args

import pytest

from backend.schemas.bases import Backbone
from backend.schemas.methods import CARDS
from backend.services import forecasts
from backend.services.forecasts import Experience

BEFORE = [Experience(run_s=10.0, steps=100, size_bytes=7)]


def test_time_grows_with_the_steps() -> None:
    forecast = forecasts.judged(BEFORE, {"steps": 250})
    assert (forecast.expected_s, forecast.size_bytes) == (25.0, 7)


def test_a_method_without_steps_takes_as_long_as_before() -> None:
    forecast = forecasts.judged([Experience(3.0, 0, 7)], {"views": 9})
    assert (forecast.steps, forecast.expected_s) == (0, 3.0)


@pytest.mark.parametrize("before", [[], [Experience(3.0, 0, 7)]])
def test_without_a_fit_experience_there_is_no_estimate(before: list[Experience]) -> None:
    forecast = forecasts.judged(before, {"steps": 9})
    assert (forecast.expected_s, forecast.size_bytes) == (None, None)
    assert "no estimate" in forecast.basis


@pytest.mark.parametrize(
    ("params", "pictures"),
    [
        ({"prior_images": 24, "prior_weight": 0.0}, 0),
        ({"prior_images": 24, "prior_weight": 1.0}, 24),
        ({"prior_images": 24}, 24),
        ({"prior_images": 24, "prior": "folder"}, 24),
        ({"prior_images": 24, "prior": "prediction"}, 0),
        ({"prior_images": 24, "prior": "none"}, 0),
        ({}, 0),
    ],
)
def test_prior_images_count_where_there_is_a_prior_term(
    params: dict[str, float | str], pictures: int
) -> None:
    assert forecasts.judged([], params).prior_images == pictures


@pytest.mark.parametrize("backbone", get_args(Backbone))
@pytest.mark.parametrize("method", CARDS)
def test_every_preset_has_a_forecast(method: str, backbone: Backbone) -> None:
    card = CARDS[method]
    for preset in card.presets[backbone].values():
        params = card.params_type(**preset).model_dump()
        assert forecasts.judged(BEFORE, params).expected_s is not None
