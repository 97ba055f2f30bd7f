"""Weights whose changes are sums of those of others: the results of merges that add.

The file holds ``site.<module>.delta`` for a weight, or factors where that takes less room
(`worker.ml.stored_changes`), and ``site.<module>.<leaf>_delta`` for any other parameter of the denoiser. On the text
side those are keys and values alone. The text encoder is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import MatrixChange, TextEdit
from worker.ml.errors import WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.stored_changes import read_change
from worker.ml.taught_words import taught_rows
from worker.ml.training.provenance import check_base

FACTORS = ("down", "up", "alpha", "scale")


class SummedChanges:
    """The reader; it holds no state."""

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        changes, words = read_sums(model, weights), taught_rows(model, weights)
        if weights.manifest.side == "weights":
            return TextEdit(words, {})
        sites = {path.removesuffix(".weight"): change for path, change in changes.items()}
        return TextEdit(words, sites, negative=bool(weights.manifest.params.get("negative", True)))

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> WeightEdit | None:
        changes = read_sums(model, weights)
        return None if weights.manifest.side == "text" else WeightEdit(changes)

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        changes = read_sums(model, weights)
        named = {site.name: changes.get(f"{site.name}.weight") for site in model.sites()}
        return {name: change.dense().float() for name, change in named.items() if change is not None}


def sum_key(path: str) -> str:
    """Name in the file of the change of a parameter of the denoiser."""
    module, _, leaf = path.rpartition(".")
    return f"site.{module}.{'delta' if leaf == 'weight' else f'{leaf}_delta'}"


def read_sums(model: DiffusionModel, weights: ConceptWeights) -> dict[str, MatrixChange]:
    """{path: change}, on the device. Raises `WeightsInvalid`."""
    check_base(model, weights)
    found = {name for name in weights.tensors if not name.startswith("token.")}
    changes: dict[str, MatrixChange] = {}
    for path, parameter in model.denoiser.named_parameters():
        module, _, leaf = path.rpartition(".")
        if leaf == "weight":
            keys = {part: f"site.{module}.{part}" for part in FACTORS} | {"delta": sum_key(path)}
        else:
            keys = {"delta": sum_key(path)}
        parts = {part: weights.tensors[key] for part, key in keys.items() if key in found}
        if parts:
            found -= set(keys.values())
            changes[path] = read_change(path, parts, tuple(parameter.shape), model.device)
    ready = {f"{site.name}.weight" for layer in model.cross_attention() for site in (layer.key, layer.value)}
    if found or (weights.manifest.side == "text" and changes.keys() - ready):
        raise WeightsInvalid(
            "The weights change parameters that this base model does not have, or not on this side."
        )
    return changes
