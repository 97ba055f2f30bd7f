"""Where a change stands in a weights file: how it is read, and what its factors are called once it is cut.

A site holds a matrix or two factors (`worker.ml.stored_changes`), or numbers that its method alone understands: the
products of LoHa and LoKr, DoRA's factors with the lengths of rows. The method reads those, and what is cut is the dense
change. A closed-form merge has one row space for all sites (`worker.ml.shared_rows`): its changes are one matrix
[sum of o, d] and are cut at once, so that what is left shares its rows still.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.ml.compression.spectra import Change
from worker.ml.concept_weights import SHARED_ROWS, SHARED_SCALE, ConceptWeights
from worker.ml.conditioning import DenseChange
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.low_rank import LowRankChange
from worker.ml.readers import reader_of
from worker.ml.stored_changes import is_matrix, read_change, shape_of

EVERYWHERE = "merge"
"""What a report calls all sites of a closed-form merge together."""


class Held(Protocol):
    """A place in the file."""

    def read(self, tensors: Mapping[str, Tensor]) -> Change:
        """The change that ``tensors``, by their names in the file, are. Raises `WeightsInvalid`."""

    def named(self, cut: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``down``, ``up`` and perhaps ``scale`` by their names in the file."""


@dataclass(frozen=True, eq=False)
class AtSite:
    """A module of its own; ``prefix`` is what its tensors' names begin with. ``words`` are weights without any change,
    whose header lets a site be absent.
    """

    model: DiffusionModel
    words: ConceptWeights
    prefix: str

    def read(self, tensors: Mapping[str, Tensor]) -> Change:
        parts = {name.removeprefix(f"{self.prefix}."): tensor for name, tensor in tensors.items()}
        if is_matrix(parts):
            return read_change(self.prefix, parts, shape_of(parts))
        if len(parts) == 1 and (vector := next(iter(parts.values()))).ndim == 1:
            return DenseChange(vector)
        alone = ConceptWeights(self.words.manifest, {**self.words.tensors, **tensors})
        reader = reader_of(alone)
        sites = reader.edit(self.model, alone).sites
        put = reader.installation(self.model, alone) or WeightEdit()
        [change] = [*sites.values(), *put.denoiser.values(), *put.text_encoder.values()]
        return DenseChange(change.dense().detach().float().cpu())

    def named(self, cut: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{self.prefix}.{part}": tensor for part, tensor in cut.items()}


@dataclass(frozen=True, eq=False)
class InSharedRows:
    """All sites of a closed-form merge; ``outputs``: how many rows each site's matrix has."""

    outputs: Mapping[str, int]

    def read(self, tensors: Mapping[str, Tensor]) -> Change:
        values = torch.cat([tensors[f"site.{name}.values"].float() for name in self.outputs])
        scale = tensors.get(SHARED_SCALE)
        return LowRankChange(
            tensors[SHARED_ROWS].float(), values if scale is None else values * scale.float(), 1.0
        )

    def named(self, cut: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = torch.split(cut["up"], list(self.outputs.values()))
        sites = {f"site.{name}.values": each for name, each in zip(self.outputs, values, strict=True)}
        scale = {SHARED_SCALE: cut["scale"]} if "scale" in cut else {}
        return {SHARED_ROWS: cut["down"], **sites, **scale}
