"""Parameters of a training: the preset that fits the base, with what the request says instead."""

from __future__ import annotations

from typing import Any

import pytest

from backend.errors import Invalid
from backend.schemas.bases import BaseDescription
from backend.schemas.methods import CARDS
from backend.services import method_params
from tests.backend.workshop import base

TOY, SD = base(), base("sd", backbone="stable-diffusion")


@pytest.mark.parametrize("on", [TOY, SD], ids=lambda on: on.backbone)
@pytest.mark.parametrize("method", CARDS)
@pytest.mark.parametrize("preset", ["quick", "balanced", "thorough"])
def test_each_concept_of_a_joint_training_gets_the_steps_of_one(
    method: str, preset: str, on: BaseDescription
) -> None:
    card = CARDS[method]
    alone, two = (method_params.checked(card, on, preset, {}, count) for count in (1, 2))
    assert two == {**alone, "steps": 2 * alone["steps"]}


@pytest.mark.parametrize("method", CARDS)
def test_steps_that_are_asked_for_stay(method: str) -> None:
    assert method_params.checked(CARDS[method], SD, "quick", {"steps": 7}, 3)["steps"] == 7


def test_eight_concepts_stay_within_the_bounds() -> None:
    assert method_params.checked(CARDS["textual-inversion"], TOY, "thorough", {}, 8)["steps"] == 20000


def test_what_is_wrong_is_said_of_joint_trainings_too() -> None:
    with pytest.raises(Invalid) as refused:
        method_params.checked(CARDS["lora"], TOY, "quick", {"rank": 0}, 2)
    assert refused.value.errors[0].pointer == "/params/rank"


PAPERS: dict[str, dict[str, Any]] = {
    "custom-diffusion": {"steps": 250, "batch_size": 4, "learning_rate": 8e-5, "token_learning_rate": 8e-5},
    "textual-inversion": {"steps": 3000, "batch_size": 4, "learning_rate": 5e-4, "vectors": 1},
    "dreambooth": {"steps": 800, "batch_size": 1, "learning_rate": 5e-6, "prior_weight": 1.0},
    "lora": {"steps": 800, "batch_size": 1, "learning_rate": 1e-4, "rank": 4, "alpha": 0.0},
    "loha": {"batch_size": 4, "learning_rate": 2e-4, "rank": 8, "alpha": 4.0},
    "lokr": {"batch_size": 4, "learning_rate": 2e-4, "rank": 1024, "factor": 8},
    "svdiff": {"steps": 1000, "batch_size": 1, "learning_rate": 1e-3, "gain_learning_rate": 1e-6},
    "perfusion": {"steps": 400, "learning_rate": 0.03, "token_learning_rate": 0.006},
    "rank-one": {"steps": 32, "strength": 8.0},
}
"""Of the methods' own papers and scripts for Stable Diffusion 1.x (methods.md, "Hyper-parameters" of each)."""


@pytest.mark.parametrize("method", CARDS)
def test_balanced_on_stable_diffusion_is_the_papers(method: str) -> None:
    params = method_params.checked(CARDS[method], SD, "balanced", {})
    assert PAPERS[method].items() <= params.items()
    if params.get("prior_weight"):  # class images as diffusers' scripts draw them
        assert (params["prior_images"], params["prior_steps"]) == (200, 50)


def test_while_no_base_is_known_presets_are_those_of_the_one_that_ships() -> None:
    card = CARDS["dreambooth"]
    unknown, toy, sd = (method_params.checked(card, on, "quick", {}) for on in (None, TOY, SD))
    assert unknown == toy
    assert (toy["learning_rate"], sd["learning_rate"]) == (3e-4, 5e-6)
