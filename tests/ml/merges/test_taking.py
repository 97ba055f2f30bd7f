"""One rule says which weights a merge can take: what it lets in can be merged, what it keeps out is told why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.weights import Compression
from tests.ml.merging import key_value, taught
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import MethodUnsupported
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES, MergeInput
from worker.ml.run import InProcessRun

FEW: dict[str, dict[str, Any]] = {
    "closed-form": {"captions": 50, "ridge": 1e-3},
    "gradient-fusion": {"captions": 50, "steps": 1},
}
CUT = Compression(criterion="bytes", value=1e6, precision="float32")
SUMS = {"linear", "ties", "dare"}
KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "crossattn": ({"method": "custom-diffusion", "train": "crossattn"}, SUMS),
    "words for every layer": ({"method": "textual-inversion", "per_layer": True}, SUMS),
    "LoRA of keys and values": (
        {"method": "lora", "attention": "key-value"}, SUMS | {"closed-form", "gradient-fusion", "lora-svd"},
    ),
    "LoRA of attention": ({"method": "lora", "attention": "cross"}, SUMS | {"gradient-fusion", "lora-svd"}),
    "LoRA with convolutions": ({"method": "lora", "convolution": True}, SUMS | {"lora-svd"}),
    "LoRA of the text encoder": ({"method": "lora", "attention": "key-value", "text_encoder": True}, set()),
    "DoRA": ({"method": "lora", "attention": "cross", "use_dora": True}, SUMS | {"gradient-fusion"}),
    "LoHa": ({"method": "loha"}, SUMS | {"gradient-fusion"}),
    "SVDiff": ({"method": "svdiff", "layers": "all"}, SUMS | {"svdiff-sum"}),
    "SVDiff of linear layers": (
        {"method": "svdiff", "layers": "linear"}, SUMS | {"svdiff-sum", "gradient-fusion"},
    ),
    "SVDiff of the text encoder": ({"method": "svdiff", "layers": "key-value", "text_encoder": True}, set()),
    "Perfusion": ({"method": "perfusion"}, {"closed-form", "perfusion-gates"}),
    "rank-one": ({"method": "rank-one"}, SUMS | {"closed-form", "gradient-fusion"}),
}  # fmt: skip
"""{what it is: how it is taught, the merges that take it}"""


def dreambooth_of_keys_and_values(
    model: DiffusionModel, folder: Path, photos: list[Path], *further: str
) -> ConceptWeights:
    """DreamBooth that was made so small that nothing but keys and values (and ``further`` tensors) was kept."""
    whole = taught(model, "stark", "dog", folder, photos, "dreambooth", steps=1, train_token=True)
    kept = {f"site.{name}.delta" for name in key_value(model)} | set(further)
    tensors = {
        name: each for name, each in whole.tensors.items() if name.startswith("token.") or name in kept
    }
    manifest = whole.manifest.model_copy(update={"compression": CUT})
    return ConceptWeights(manifest, tensors)


def takers(model: DiffusionModel, weights: ConceptWeights) -> dict[str, str]:
    """{merge: empty where it took the weights, else why not}. A merge that lets them in must come to its end."""
    found = {}
    for name, merge in MERGES.items():
        params = MERGE_CARDS[name].params_type(**FEW.get(name, {}))
        try:
            merge.merge(model, [MergeInput("a", weights)], params, InProcessRun())
            found[name] = ""
        except MethodUnsupported as error:
            found[name] = str(error)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_let_in_is_merged(
    kind: str, model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    how, expected = KINDS[kind]
    weights = taught(model, "stark", "dog", tmp_path, photos, steps=1, **how)
    told = takers(model, weights)
    assert {name for name, reason in told.items() if not reason} == expected
    assert all("stark" in reason and reason.endswith(".") for reason in told.values() if reason)


def test_weight_side_keys_and_values_are_taken_in_closed_form(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    """DreamBooth of keys and values alone is weight side by its method, and text side by what it does."""
    small = dreambooth_of_keys_and_values(model, tmp_path, photos)
    assert small.manifest.side == "weights"
    assert {"closed-form", "gradient-fusion"} <= {
        name for name, why in takers(model, small).items() if not why
    }
    bias = dreambooth_of_keys_and_values(model, tmp_path, photos, "site.conv_in.bias_delta")
    told = takers(model, bias)
    assert "more of the model than keys and values of text, conv_in among it" in told["closed-form"]
    assert "convolutions, norms or biases too, at conv_in" in told["gradient-fusion"]
