"""SVDiff: which layers, how large, on which side, and what weights must fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from backend.schemas.methods.svdiff import SVDiffParams, side
from tests.ml.teaching import assert_untrained_is_the_base, prepare, stark, teach
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import MethodUnsupported, WeightsInvalid
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import installed, replaced
from worker.ml.methods import METHODS
from worker.ml.methods.svdiff import chosen_modules, gains, shifts_of
from worker.ml.training.trainee import Trainee

METHOD = METHODS["svdiff"]
SITE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def prepared(model: DiffusionModel, photos: list[Path], **params: Any) -> Trainee:
    return prepare(
        model, [stark(photos)], Path("no-prior"), method="svdiff", **{"prior_weight": 0.0, **params}
    )


@pytest.mark.parametrize(
    ("params", "expected_side"),
    [
        ({}, "weights"),
        ({"layers": "linear"}, "weights"),
        ({"layers": "cross"}, "weights"),
        ({"layers": "key-value"}, "text"),
        ({"layers": "key-value", "text_encoder": True}, "weights"),
    ],
)
def test_the_chosen_layers(model: DiffusionModel, params: dict[str, Any], expected_side: str) -> None:
    """T3: exactly the named subset of the parameters called weight."""
    chosen = SVDiffParams(**params)
    assert side(chosen) == expected_side
    weights = {path.removesuffix(".weight"): p for path, p in model.denoiser.named_parameters()
               if path.endswith(".weight")}  # fmt: skip
    expected = {
        "all": set(weights),
        "linear": {path for path, p in weights.items() if p.ndim == 2},
        "cross": {path for path in weights if ".attn2." in path},
        "key-value": {path for path in weights if path.endswith(("attn2.to_k", "attn2.to_v"))},
    }[chosen.layers]
    encoder = {
        path.removesuffix(".weight").removeprefix("text_model.")
        for path, _ in model.text_encoder.named_parameters()
        if path.endswith(".weight") and "embedding" not in path
    }
    found = chosen_modules(model, chosen)
    assert {key.removeprefix("site.") for key in found if key.startswith("site.")} == expected
    assert {key.removeprefix("encoder.") for key in found if key.startswith("encoder.")} == (
        encoder if chosen.text_encoder else set()
    )


def test_the_census_of_stable_diffusion() -> None:
    """methods.md 9: floats of the whole denoiser, of its 2-D and 4-D weights and of its norms; nothing is loaded."""
    with torch.device("meta"):
        denoiser = UNet2DConditionModel(cross_attention_dim=768)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    layers = [module for module in denoiser.modules() if isinstance(module, kinds)]
    by_kind = [sum(map(shifts_of, [m for m in layers if isinstance(m, kind)])) for kind in kinds]
    norms = gains(denoiser)
    assert by_kind == [140_416, 82_280]
    assert (len(norms), sum(map(shifts_of, norms.values()))) == (109, 100_160)


def test_sizes_rates_and_the_word(model: DiffusionModel, photos: list[Path]) -> None:
    """A shift for each singular value and for each element of a gain; no decay; the word is not learnt."""
    trainee = prepared(model, photos, text_encoder=True, learning_rate=3e-3, text_learning_rate=2e-3,
                       gain_learning_rate=1e-5)  # fmt: skip
    tensors = trainee.tensors()
    assert tensors[f"site.{SITE}.shift"].shape == (32,)
    assert tensors["site.conv_in.shift"].shape == (32,)
    assert tensors["site.conv_out.shift"].shape == (4,)
    assert tensors["site.conv_norm_out.shift"].shape == (32,)
    assert [(g.learning_rate, g.weight_decay) for g in trainee.groups] == [(3e-3, 0), (2e-3, 0), (1e-5, 0)]
    assert all(name.startswith("site.") for name in trainee.groups[0].tensors)
    assert all(name.startswith("encoder.") for name in trainee.groups[1].tensors)
    assert {"site.conv_norm_out.shift", "encoder.final_layer_norm.shift"} <= trainee.groups[2].tensors.keys()
    assert not any(name.startswith("token.") for name in tensors)


def test_untrained_it_is_the_base_model_to_the_bit(model: DiffusionModel, photos: list[Path]) -> None:
    """T1: delta = 0, in the layers' places and installed."""
    trainee = prepared(model, photos, text_encoder=True)
    assert_untrained_is_the_base(model, "svdiff", trainee)


def test_stored_are_shifts_and_no_vectors(model: DiffusionModel, photos: list[Path]) -> None:
    weights = prepared(model, photos).result(0)
    shifts = {name: t for name, t in weights.tensors.items() if name.endswith(".shift")}
    others = weights.tensors.keys() - shifts.keys()
    assert sum(t.numel() for t in shifts.values()) == sum(
        map(shifts_of, chosen_modules(model, SVDiffParams()).values())
    )
    assert all(name.endswith(".checksum") or name.startswith("token.") for name in others)
    assert all(t.dtype == torch.float32 for t in weights.tensors.values())


def test_in_half_precision_it_is_refused(
    model: DiffusionModel, photos: list[Path], tiny_folder: Path
) -> None:
    half = load_base(tiny_folder, dtype=torch.bfloat16)
    with pytest.raises(MethodUnsupported, match="single precision"):
        prepared(half, photos)
    with pytest.raises(MethodUnsupported, match="single precision"):
        METHOD.installation(half, prepared(model, photos).result(0))


@pytest.fixture(scope="module")
def weights(model: DiffusionModel, photos: list[Path]) -> ConceptWeights:
    return teach(model, [stark(photos)], Path("no-prior"), method="svdiff", steps=1, prior_weight=0.0,
                 layers="cross")  # fmt: skip


def put(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.pop(name) if tensor is None else held.update({name: tensor})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (put(f"site.{SITE}.checksum", None), "not one that this base model could use"),
        (put(f"site.{SITE}.checksum", torch.ones(2)), "not one that this base model could use"),
        (put("site.nowhere.shift", torch.zeros(2)), "not one that this base model could use"),
        (put("encoder.nowhere.shift", torch.zeros(2)), "not one that this base model could use"),
        (put(f"site.{SITE}.shift", torch.zeros(31)), r"shape \[31\], not \[32\]"),
        (put(f"site.{SITE}.shift", torch.zeros(32, 1)), r"shape \[32, 1\], not \[32\]"),
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


def test_shifts_of_other_singular_values_are_refused(model: DiffusionModel, weights: ConceptWeights) -> None:
    """A base that says it is the same but is not: one matrix was touched."""
    touched = model.denoiser.get_parameter(f"{SITE}.weight") * 1.01
    with (
        replaced(model.denoiser, {f"{SITE}.weight": touched}),
        pytest.raises(WeightsInvalid, match=f"singular values of {SITE}"),
    ):
        METHOD.installation(model, weights)


def test_weight_side_layers_that_call_themselves_text_side_are_refused(
    model: DiffusionModel, weights: ConceptWeights
) -> None:
    lying = weights.manifest.model_copy(update={"side": "text"})
    with pytest.raises(WeightsInvalid, match="call themselves text side"):
        METHOD.edit(model, ConceptWeights(lying, weights.tensors))


def test_two_concepts_add_in_any_order(
    model: DiffusionModel, photos: list[Path], weights: ConceptWeights
) -> None:
    other = teach(model, [stark(photos)], Path("no-prior"), method="svdiff", steps=1, prior_weight=0.0,
                  layers="cross", seed=8)  # fmt: skip
    edits = [METHOD.installation(model, each) for each in (weights, other)]
    assert edits[0] is not None
    assert edits[1] is not None
    found = []
    for order in ((0, 1), (1, 0)):
        with installed(model, tuple((edits[place], 1.0) for place in order)):  # type: ignore[misc]
            found.append(model.denoiser.get_parameter(f"{SITE}.weight").clone())
    torch.testing.assert_close(found[0], found[1], atol=1e-7, rtol=0)
