"""LoRA: which layers, how large, on which side, and what weights must fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.schemas.methods.lora import LoraParams, side
from tests.ml.teaching import assert_untrained_is_the_base, prepare, stark, teach
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.errors import InputInvalid, WeightsInvalid
from worker.ml.families.base import DiffusionModel, encoder_modules
from worker.ml.installation import installed
from worker.ml.methods import METHODS
from worker.ml.methods.lora import check_rank, chosen_modules
from worker.ml.run import InProcessRun
from worker.ml.training.loop import Progress, advance
from worker.ml.training.trainee import Trainee

METHOD = METHODS["lora"]
SITE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def prepared(model: DiffusionModel, photos: list[Path], **params: Any) -> Trainee:
    return prepare(model, [stark(photos)], Path("no-prior"), method="lora", **params)


@pytest.mark.parametrize(
    ("params", "count", "expected_side"),
    [
        ({}, 32, "weights"),
        ({"attention": "cross"}, 16, "weights"),
        ({"attention": "key-value"}, 8, "text"),
        ({"attention": "key-value", "feed_forward": True}, 16, "weights"),
        ({"attention": "none", "convolution": True}, 23, "weights"),
        ({"attention": "key-value", "text_encoder": True}, 16, "weights"),
    ],
)
def test_the_chosen_layers(
    model: DiffusionModel, photos: list[Path], params: dict[str, Any], count: int, expected_side: str
) -> None:
    """T3: four transformer blocks with two attentions of four layers each; two encoder layers of four;
    2 + 1 convolutions at the top on the way down, 3 below, 4 in the middle, 6 + 1 and 6 on the way up.
    """
    modules = chosen_modules(model, LoraParams(**params))
    assert len(modules) == count
    assert side(LoraParams(**params)) == expected_side
    trainee = prepared(model, photos, **params)
    assert trainee.tensors().keys() == {f"{key}.{part}" for key in modules for part in ("down", "up")}
    assert trainee.alone == (expected_side == "weights")
    assert trainee.result(0).manifest.side == expected_side


def test_sizes_rates_and_the_word(model: DiffusionModel, photos: list[Path]) -> None:
    """methods.md 8: r (in + out) numbers a layer. Decay pulls changes towards the base; the word is not decayed."""
    trainee = prepared(model, photos, rank=3, text_encoder=True, train_token=True, weight_decay=0.02,
                       learning_rate=1e-3, text_learning_rate=1e-4, token_learning_rate=1e-2)  # fmt: skip
    tensors = trainee.tensors()
    assert tensors[f"site.{SITE}.down"].shape == (3, 32)
    assert tensors[f"site.{SITE}.up"].shape == (64, 3)
    assert [(g.learning_rate, g.weight_decay) for g in trainee.groups] == [
        (1e-3, 0.02),
        (1e-4, 0.02),
        (1e-2, 0.0),
    ]
    assert list(trainee.groups[2].tensors) == ["token.stark.learned"]
    assert torch.equal(tensors["token.stark.learned"], model.initial_rows(1))
    convolutions = prepared(model, photos, rank=3, attention="none", convolution=True).tensors()
    assert convolutions["site.down_blocks.0.resnets.0.conv1.down"].shape == (3, 32, 3, 3)
    assert convolutions["site.down_blocks.0.resnets.0.conv1.up"].shape == (32, 3, 1, 1)


def test_untrained_it_is_the_base_model_to_the_bit(model: DiffusionModel, photos: list[Path]) -> None:
    """T1: B = 0, beside the layers and installed."""
    trainee = prepared(model, photos, feed_forward=True, convolution=True, text_encoder=True)
    assert_untrained_is_the_base(model, "lora", trainee)


@pytest.mark.parametrize(("alpha", "factor"), [(0.0, 1.0), (8.0, 2.0), (1.0, 0.25)])
def test_alpha_over_rank(model: DiffusionModel, photos: list[Path], alpha: float, factor: float) -> None:
    """Also through the file: the true alpha is in it."""
    weights = prepared(model, photos, rank=4, alpha=alpha).result(0)
    tensors = {name: torch.ones_like(tensor) if name.endswith((".up", ".down")) else tensor
               for name, tensor in weights.tensors.items()}  # fmt: skip
    delta = METHOD.deltas(model, ConceptWeights(weights.manifest, tensors))[SITE]
    assert torch.equal(delta, torch.full((64, 32), factor * 4))
    assert float(weights.tensors[f"site.{SITE}.alpha"]) == factor * 4


def test_a_rank_larger_than_the_matrix_is_refused(model: DiffusionModel, photos: list[Path]) -> None:
    check_rank(chosen_modules(model, LoraParams()), 32)
    with pytest.raises(
        InputInvalid, match=r"Rank 33 is larger than the matrix of .* \(64 x 32\): at most 32"
    ):
        prepared(model, photos, rank=33)


def test_no_layers_are_refused(model: DiffusionModel, photos: list[Path]) -> None:
    with pytest.raises(InputInvalid, match="No layers are chosen"):
        prepared(model, photos, attention="none")


def test_a_trained_text_encoder_is_heard_by_every_caption_and_never_kept(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    """The prior's captions have no placeholder: their states would else be made once and without gradient."""
    trainee = prepare(model, [stark(photos)], tmp_path, method="lora", attention="none", text_encoder=True,
                      prior_weight=1.0, text_learning_rate=0.05)  # fmt: skip
    with trainee.installed():
        progress = Progress(trainee)
        plain = [Prompt("a photo of a dog")]
        states = []
        for _ in range(3):
            found = text_kv(model, plain, cache=progress.states, encoder_gradient=True).kv.keys[0]
            assert found.requires_grad
            states.append(found.detach())
            advance(model, [progress], InProcessRun())
        assert progress.states == {}
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])


def test_the_encoders_names_lack_the_prefix_of_some_versions(model: DiffusionModel) -> None:
    names = encoder_modules(model)
    assert "encoder.layers.0.self_attn.q_proj" in names
    assert not any(name.startswith("text_model.") for name in names)
    assert all(model.text_encoder.get_submodule(path) is module for path, module in names.values())


@pytest.fixture(scope="module")
def weights(model: DiffusionModel, photos: list[Path]) -> ConceptWeights:
    return teach(model, [stark(photos)], Path("no-prior"), method="lora", steps=2)


def put(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.pop(name) if tensor is None else held.update({name: tensor})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (put(f"site.{SITE}.up", None), "not one that this base model could use"),
        (put(f"site.{SITE}.alpha", torch.ones(2)), "not one that this base model could use"),
        (put("site.nowhere.delta", torch.zeros(2, 2)), "not one that this base model could use"),
        (put("encoder.nowhere.down", torch.zeros(2, 2)), "not one that this base model could use"),
        (put(f"site.{SITE}.up", torch.zeros(64, 3)), "do not fit"),
        (put(f"site.{SITE}.down", torch.zeros(4, 31)), "do not fit"),
        (put(f"site.{SITE}.down", torch.zeros(0, 32)), "do not fit"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    model: DiffusionModel,
    weights: ConceptWeights,
    spoil: Callable[[dict[str, Tensor]], object],
    sentence: str,
) -> None:
    held = dict(weights.tensors)
    spoil(held)
    for use in (METHOD.edit, METHOD.installation, METHOD.deltas):
        with pytest.raises(WeightsInvalid, match=sentence):
            use(model, ConceptWeights(weights.manifest, held))


def test_weight_side_layers_that_call_themselves_text_side_are_refused(
    model: DiffusionModel, weights: ConceptWeights
) -> None:
    lying = weights.manifest.model_copy(update={"side": "text"})
    with pytest.raises(WeightsInvalid, match="call themselves text side"):
        METHOD.edit(model, ConceptWeights(lying, weights.tensors))


def test_dora_learns_a_length_for_each_row(model: DiffusionModel, photos: list[Path]) -> None:
    """One number an output, at the rate and with the decay of the layer; 0 at first, so that the base is the base."""
    options = {"use_dora": True, "feed_forward": True, "convolution": True, "text_encoder": True}
    trainee = prepared(model, photos, rank=3, text_learning_rate=1e-3, weight_decay=0.02, **options)
    tensors = trainee.tensors()
    plain = prepared(model, photos, rank=3, **{**options, "use_dora": False}).tensors()
    lengths = {name: tensor for name, tensor in tensors.items() if name.endswith(".magnitude")}
    assert tensors.keys() - lengths.keys() == plain.keys()
    assert all(torch.equal(tensors[name], plain[name]) for name in plain)
    assert {name.removesuffix(".magnitude") for name in lengths} == {
        name.rpartition(".")[0] for name in plain
    }
    assert lengths[f"site.{SITE}.magnitude"].shape == (64,)
    assert lengths["site.down_blocks.0.resnets.0.conv1.magnitude"].shape == (32,)
    assert not any(tensor.any() for tensor in lengths.values())
    of_encoder = next(group for group in trainee.groups if any("encoder." in name for name in group.tensors))
    assert (of_encoder.learning_rate, of_encoder.weight_decay) == (1e-3, 0.02)
    assert "encoder.encoder.layers.0.self_attn.q_proj.magnitude" in of_encoder.tensors
    assert_untrained_is_the_base(model, "lora", trainee)


@pytest.fixture(scope="module")
def dora(model: DiffusionModel, photos: list[Path]) -> ConceptWeights:
    return teach(model, [stark(photos)], Path("no-prior"), method="lora", steps=2, use_dora=True)


@pytest.mark.parametrize("magnitude", [torch.zeros(63), torch.zeros(64, 1), torch.tensor(0.0)])
def test_lengths_that_do_not_fit_are_refused(
    model: DiffusionModel, dora: ConceptWeights, magnitude: Tensor
) -> None:
    held = {**dora.tensors, f"site.{SITE}.magnitude": magnitude}
    for use in (METHOD.edit, METHOD.installation, METHOD.deltas):
        with pytest.raises(WeightsInvalid, match="not one that this base model could use"):
            use(model, ConceptWeights(dora.manifest, held))


def test_two_of_dora_at_once_add_their_changes_of_the_base(
    model: DiffusionModel, photos: list[Path], dora: ConceptWeights
) -> None:
    """Each is a change of the base's matrix, not of what the other made of it."""
    other = teach(model, [stark(photos)], Path("no-prior"), method="lora", steps=2, use_dora=True, seed=9)
    edits = [METHOD.installation(model, each) for each in (dora, other)]
    assert edits[0] is not None
    assert edits[1] is not None
    before = model.denoiser.get_parameter(f"{SITE}.weight").clone()
    expected = before + 0.5 * METHOD.deltas(model, dora)[SITE] + METHOD.deltas(model, other)[SITE]
    with installed(model, ((edits[0], 0.5), (edits[1], 1.0))):
        found = model.denoiser.get_parameter(f"{SITE}.weight").clone()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (expected - before).abs().max() > 1e-5
