"""Weight-side concepts in use: exact removal, sums of several, rows grouped by what is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ml.teaching import everything, prepare, same, stark, teach
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import DenseChange, Prompt, text_kv
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit, installed, replaced
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import InProcessRun
from worker.ml.sampling.engine import GenerationUnit, generate
from worker.ml.sampling.latents import ConditioningCache
from worker.ml.training.loop import train

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def taught(
    model: DiffusionModel, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> list[ConceptWeights]:
    """Two concepts of two owners with one name: a loud one with its text encoder, and another seed of it."""
    folder = tmp_path_factory.mktemp("prior")
    return [
        teach(model, [stark(photos)], folder, method="lora", seed=seed, learning_rate=0.05, text_learning_rate=0.05,
              text_encoder=True)
        for seed in (1, 2)
    ]  # fmt: skip


def unit(
    index: int, *weights: tuple[ConceptWeights, float], text: str = "a photo of a dog"
) -> GenerationUnit:
    return GenerationUnit(index, text, "", 5, 3, 4.0, "ddim", 32, 32, weights)


def test_the_very_objects_come_back(model: DiffusionModel) -> None:
    before = dict(model.denoiser.named_parameters())
    kept = everything(model)
    trainable = torch.nn.Parameter(torch.zeros_like(before[NAME]))
    with replaced(model.denoiser, {NAME: trainable}):
        assert model.denoiser.get_parameter(NAME) is trainable
        with replaced(model.denoiser, {NAME: torch.ones_like(trainable)}):
            assert bool((model.denoiser.get_parameter(NAME) == 1).all())
        assert model.denoiser.get_parameter(NAME) is trainable
    after = dict(model.denoiser.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert same(kept, everything(model))


def test_an_unknown_name_leaves_nothing_behind(model: DiffusionModel) -> None:
    kept = everything(model)
    with (
        pytest.raises((AttributeError, KeyError)),
        replaced(model.denoiser, {NAME: torch.zeros(1), "conv_in.none": torch.zeros(1)}),
    ):
        pass
    assert same(kept, everything(model))


def test_edits_add_with_their_scales(model: DiffusionModel) -> None:
    weight = model.denoiser.get_parameter(NAME)
    one, two = torch.randn(2, *weight.shape)
    edits = [WeightEdit({NAME: DenseChange(change)}) for change in (one, two)]
    with installed(model, ((edits[0], 0.5), (edits[1], -2.0))):
        found = model.denoiser.get_parameter(NAME).double()
    expected = weight.double() + 0.5 * one.double() - 2.0 * two.double()
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), atol=1e-6)
    with installed(model, ((edits[0], 0.0),)):
        assert model.denoiser.get_parameter(NAME) is weight


def test_units_of_several_owners_in_one_call_are_what_they_are_alone(
    model: DiffusionModel, taught: list[ConceptWeights]
) -> None:
    """Also the base model's own, before and after; and the caller finds the base model between two pictures."""
    kept = everything(model)
    one, two = taught
    units = [
        unit(0),
        unit(1, (one, 1.0)),
        unit(2, (two, 1.0)),
        unit(3, (one, 0.5)),
        unit(4),
        unit(5, (one, 0.0)),
    ]
    together = {}
    for made, pixels in generate(model, units, InProcessRun()):
        together[made.index] = pixels.astype(int)
        assert same(kept, everything(model))
    for each in units:
        ((_, pixels),) = generate(model, [each], InProcessRun())
        assert np.abs(together[each.index] - pixels).max() <= 2
    assert np.array_equal(together[0], together[5])
    for first, second in ((0, 1), (1, 2), (1, 3)):
        assert np.abs(together[first] - together[second]).max() > 2


def test_ready_text_is_kept_for_each_installation(
    model: DiffusionModel, taught: list[ConceptWeights]
) -> None:
    cache, prompt = ConditioningCache(), Prompt("a photo of a dog")
    before = cache.rows(model, [prompt])
    edit = METHODS["lora"].installation(model, taught[0])
    assert edit is not None
    assert edit.text_encoder
    with torch.no_grad(), installed(model, ((edit, 1.0),)):
        during = cache.rows(model, [prompt], ((edit, 1.0),))
        expected = text_kv(model, [prompt])
    assert torch.equal(during.kv.keys[0], expected.kv.keys[0])
    assert not torch.equal(during.kv.keys[0], before.kv.keys[0])
    assert torch.equal(cache.rows(model, [prompt]).kv.keys[0], before.kv.keys[0])


def test_trainees_with_something_installed_train_one_after_another(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    concepts = [stark(photos), ConceptExamples("wolf", "cat", "subject", photos)]
    trainees = [prepare(model, [concept], tmp_path, method="lora") for concept in concepts]
    together = train(model, trainees, InProcessRun())
    for concept, weights in zip(concepts, together, strict=True):
        assert weights.to_bytes() == teach(model, [concept], tmp_path, method="lora").to_bytes()
