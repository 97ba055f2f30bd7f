"""Weights whose changes all have one row space: ``dW_l = R_l Q`` with the same ``Q`` [r, d] at every site (the result
of the closed-form merge, methods.md 6.2). The file holds ``merge.rows`` Q and ``site.<name>.values`` R_l [o, r]; where
both are of 8-bit numbers also ``merge.scale`` s [r], and ``dW_l = R_l diag(s) Q``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.ml.concept_weights import SHARED_ROWS, SHARED_SCALE, ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.errors import WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.low_rank import LowRankChange
from worker.ml.taught_words import taught_rows
from worker.ml.training.provenance import check_base


class SharedRows:
    """The reader; it holds no state."""

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        negative = bool(weights.manifest.params.get("negative", True))
        return TextEdit(taught_rows(model, weights), _changes(model, weights), negative=negative)

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> None:
        """Nothing: text side."""

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        return {name: change.dense() for name, change in _changes(model, weights).items()}


def shared_tensors(values: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Tensors of the weights file, of ``values`` {site: [o, r]} and ``rows`` [r, d], r > 0."""
    return {SHARED_ROWS: rows, **{f"site.{name}.values": each for name, each in values.items()}}


def _changes(model: DiffusionModel, weights: ConceptWeights) -> dict[str, LowRankChange]:
    check_base(model, weights)
    sites = {site.name: site for layer in model.cross_attention() for site in (layer.key, layer.value)}
    parts, rows = weights.site_parts(), weights.tensors.get(SHARED_ROWS)
    scale = weights.tensors.get(SHARED_SCALE)
    if rows is None and not parts:
        return {}
    if rows is None or weights.site_parts("encoder") or not parts.keys() <= sites.keys():
        raise WeightsInvalid("The weights do not name the key and value matrices of this base model.")
    kinds = {rows.dtype, *(each.dtype for held in parts.values() for each in held.values())}
    in_bytes = kinds == {torch.int8} and scale is not None and scale.shape == rows.shape[:1]
    if not in_bytes and (scale is not None or torch.int8 in kinds):
        raise WeightsInvalid("The weights' 8-bit numbers lack their scales, or have scales of another kind.")
    sizes = torch.ones(len(rows)) if scale is None else scale.float()
    changes = {}
    for name, held in parts.items():
        wanted = (len(sites[name].weight), len(rows))
        fits = held.keys() == {"values"} and tuple(held["values"].shape) == wanted
        if not fits or rows.ndim != 2 or rows.shape[1] != sites[name].weight.shape[1]:
            raise WeightsInvalid(f"The change of {name} is not one that this base model could use.")
        changes[name] = LowRankChange(
            rows.to(model.device).float(), (held["values"].float() * sizes).to(model.device), 1.0
        )
    return changes
