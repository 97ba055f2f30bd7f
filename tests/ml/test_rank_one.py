"""The rank-one edit as a concept: what its file says, what it leaves alone, and that it may end early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ml.teaching import prepare, stark, teach
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import InProcessRun

METHOD = METHODS["rank-one"]


def taught(model: DiffusionModel, concepts: list[ConceptExamples], **options: Any) -> ConceptWeights:
    return teach(model, concepts, Path("no-prior"), method="rank-one", **options)


def test_each_key_is_read_as_its_own_target_and_no_other(model: DiffusionModel, photos: list[Path]) -> None:
    """``dW i*_j = o*_j - W i*_j`` for both concepts at once; only value matrices change, by rank two."""
    weights = taught(model, [stark(photos), ConceptExamples("bell", "teapot", "subject", photos)])
    keys = torch.cat([weights.tensors[f"token.{token}.key"] for token in ("stark", "bell")])
    deltas = METHOD.deltas(model, weights)
    assert deltas.keys() == {layer.value.name for layer in model.cross_attention()}
    for name, delta in deltas.items():
        change = weights.tensors[f"site.{name}.change"]
        torch.testing.assert_close(delta @ keys.T, change.T, atol=1e-3, rtol=1e-3)
        assert torch.linalg.matrix_rank(delta, rtol=1e-4) == 2


def test_the_change_is_as_long_as_was_asked_and_the_word_stays(
    model: DiffusionModel, photos: list[Path]
) -> None:
    weights = taught(model, [stark(photos)], strength=3.0)
    key = weights.tensors["token.stark.key"]
    moved = torch.cat(
        [weights.tensors[f"site.{layer.value.name}.change"][0] for layer in model.cross_attention()]
    )
    said = torch.cat([(key @ layer.value.weight.T)[0] for layer in model.cross_attention()])
    torch.testing.assert_close(moved.norm(), 3.0 * said.norm())
    assert torch.equal(weights.tensors["token.stark.learned"], weights.tensors["token.stark.start"])


def test_finished_early_it_is_the_mean_so_far(model: DiffusionModel, photos: list[Path]) -> None:
    run = InProcessRun()
    run.on_step = lambda unit, done, *_: setattr(
        run, "request", "finish" if unit == "train" and done == 3 else None
    )
    early = taught(model, [stark(photos)], run=run, steps=6)
    assert early.manifest.steps == 3
    whole = taught(model, [stark(photos)], steps=3)
    assert all(torch.equal(early.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_before_the_first_batch_nothing_changes(model: DiffusionModel, photos: list[Path]) -> None:
    trainee = prepare(model, [stark(photos)], Path("no-prior"), method="rank-one")
    deltas = METHOD.deltas(model, trainee.result(0))
    assert deltas
    assert not any(delta.any() for delta in deltas.values())


@pytest.mark.parametrize("part", ["token.stark.dual", "token.stark.key"])
def test_weights_that_do_not_fit_are_refused(model: DiffusionModel, photos: list[Path], part: str) -> None:
    weights = prepare(model, [stark(photos)], Path("no-prior"), method="rank-one").result(0)
    with pytest.raises(WeightsInvalid, match="shape"):
        METHOD.edit(model, ConceptWeights(weights.manifest, {**weights.tensors, part: torch.ones(1, 5)}))
    left = {name: tensor for name, tensor in weights.tensors.items() if name != part}
    with pytest.raises(WeightsInvalid, match="each once"):
        METHOD.edit(model, ConceptWeights(weights.manifest, left))
