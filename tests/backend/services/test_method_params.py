"""Parameters of a training: the preset with what the request says instead."""

from __future__ import annotations

import pytest

from backend.errors import Invalid
from backend.schemas.methods import CARDS
from backend.services import method_params


@pytest.mark.parametrize("method", CARDS)
@pytest.mark.parametrize("preset", ["quick", "balanced", "thorough"])
def test_each_concept_of_a_joint_training_gets_the_steps_of_one(method: str, preset: str) -> None:
    card = CARDS[method]
    alone, two = (method_params.checked(card, preset, {}, count) for count in (1, 2))
    assert two == {**alone, "steps": 2 * alone["steps"]}


@pytest.mark.parametrize("method", CARDS)
def test_steps_that_are_asked_for_stay(method: str) -> None:
    assert method_params.checked(CARDS[method], "quick", {"steps": 7}, 3)["steps"] == 7


def test_eight_concepts_stay_within_the_bounds() -> None:
    assert method_params.checked(CARDS["textual-inversion"], "thorough", {}, 8)["steps"] == 20000


def test_what_is_wrong_is_said_of_joint_trainings_too() -> None:
    with pytest.raises(Invalid) as refused:
        method_params.checked(CARDS["lora"], "quick", {"rank": 0}, 2)
    assert refused.value.errors[0].pointer == "/params/rank"
