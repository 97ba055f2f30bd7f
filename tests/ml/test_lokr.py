"""LoKr: which layers, how large, and what weights must fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ml.teaching import assert_untrained_is_the_base, prepare, stark, teach
from worker.ml.adapters import attention_layers
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS
from worker.ml.training.trainee import Trainee

METHOD = METHODS["lokr"]
SITE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def prepared(model: DiffusionModel, photos: list[Path], **params: Any) -> Trainee:
    return prepare(model, [stark(photos)], Path("no-prior"), method="lokr", prior="none", **params)


@pytest.mark.parametrize(("attention", "count"), [("all", 32), ("cross", 16), ("key-value", 8)])
def test_the_chosen_layers(model: DiffusionModel, photos: list[Path], attention: Any, count: int) -> None:
    """Four transformer blocks with two attentions of four layers each."""
    modules = attention_layers(model, attention)
    assert len(modules) == count
    trainee = prepared(model, photos, attention=attention)
    assert trainee.tensors().keys() == {f"{key}.{part}" for key in modules for part in ("first", "second")}
    assert trainee.result(0).manifest.side == ("text" if attention == "key-value" else "weights")


def test_sizes_rates_and_the_word(model: DiffusionModel, photos: list[Path]) -> None:
    """A layer from 32 to 64 by factor 4: C is 4 x 4, D is 16 x 8. Decay pulls towards the base; the word is free."""
    trainee = prepared(model, photos, factor=4, rank=3, alpha=6.0, weight_decay=0.02, learning_rate=1e-3,
                       token_learning_rate=1e-2)  # fmt: skip
    tensors = trainee.tensors()
    shapes = {
        part: tuple(tensors[f"site.{SITE}.{part}"].shape) for part in ("first", "second_up", "second_down")
    }
    assert shapes == {"first": (4, 4), "second_up": (16, 3), "second_down": (3, 8)}
    assert [(g.learning_rate, g.weight_decay) for g in trainee.groups] == [(1e-3, 0.02), (1e-2, 0.0)]
    assert list(trainee.groups[1].tensors) == ["token.stark.learned"]
    assert float(trainee.result(0).tensors[f"site.{SITE}.alpha"]) == 6.0
    whole = prepared(model, photos, factor=4, rank=8).tensors()
    assert whole[f"site.{SITE}.second"].shape == (16, 8)
    held = prepared(model, photos, token_learning_rate=0.0)
    assert "token.stark.learned" not in held.tensors()


def test_starts_are_those_of_lycoris(model: DiffusionModel, photos: list[Path]) -> None:
    """Kaiming's uniform within 1 / sqrt(columns); what comes last is 0."""
    tensors = prepared(model, photos, factor=4, rank=3).tensors()
    first, up, down = (tensors[f"site.{SITE}.{part}"] for part in ("first", "second_up", "second_down"))
    assert 0.8 / 2 < first.abs().max() <= 1 / 2
    assert 0.8 / 3**0.5 < up.abs().max() <= 1 / 3**0.5
    assert not down.any()
    assert not prepared(model, photos, factor=4).tensors()[f"site.{SITE}.second"].any()


@pytest.mark.parametrize("rank", [3, 1024])
def test_untrained_it_is_the_base_model_to_the_bit(
    model: DiffusionModel, photos: list[Path], rank: int
) -> None:
    trainee = prepared(model, photos, rank=rank)
    assert_untrained_is_the_base(model, "lokr", trainee)


@pytest.fixture(scope="module")
def weights(model: DiffusionModel, photos: list[Path]) -> ConceptWeights:
    return teach(
        model, [stark(photos)], Path("no-prior"), method="lokr", steps=2, prior="none", factor=4, rank=3
    )


def put(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.pop(name) if tensor is None else held.update({name: tensor})


@pytest.mark.parametrize(
    "spoil",
    [
        put(f"site.{SITE}.second_down", None),
        put(f"site.{SITE}.second", torch.zeros(16, 8)),
        put(f"site.{SITE}.alpha", torch.ones(2)),
        put("site.nowhere.first", torch.zeros(2, 2)),
        put(f"site.{SITE}.first", torch.zeros(4, 5)),
        put(f"site.{SITE}.second_up", torch.zeros(16, 2)),
        put(f"site.{SITE}.second_down", torch.zeros(3, 7)),
        put(f"site.{SITE}.second_down", torch.zeros(24)),
        put(f"site.{SITE}.second_up", torch.zeros(16, 0)),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    model: DiffusionModel, weights: ConceptWeights, spoil: Callable[[dict[str, Tensor]], object]
) -> None:
    held = dict(weights.tensors)
    spoil(held)
    for use in (METHOD.edit, METHOD.installation, METHOD.deltas):
        with pytest.raises(WeightsInvalid, match="not one that this base model could use"):
            use(model, ConceptWeights(weights.manifest, held))
