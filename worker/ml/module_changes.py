"""Changes that stand in a weights file under the names of modules, read back and fitted to a base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import torch
from torch import Tensor

from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import MatrixChange
from worker.ml.errors import WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.training.provenance import check_base

Read = TypeVar("Read")
Part = Literal["site", "encoder"]
Modules = Mapping[str, tuple[str, torch.nn.Module]]
"""{name in the file: (path in this version of the library, module)}; they differ for the text encoder only."""


def read_changes(
    model: DiffusionModel,
    weights: ConceptWeights,
    modules: Mapping[Part, Modules],
    read: Callable[[str, torch.nn.Module, Mapping[str, Tensor]], Read],
) -> dict[Part, dict[str, Read]]:
    """``read(key, module, parts)`` of every module that the weights name; ``key`` is "site.<name>" or
    "encoder.<name>". Raises `WeightsInvalid`: another base, a module that is not among ``modules``, none at all
    (unless weights were made smaller), text-side weights that change more than keys and values.
    """
    check_base(model, weights)
    changes: dict[Part, dict[str, Read]] = {"site": {}, "encoder": {}}
    for part, found in changes.items():
        for name, parts in weights.site_parts(part).items():
            if name not in modules[part]:
                raise not_usable(name)
            found[name] = read(f"{part}.{name}", modules[part][name][1], parts)
    if not any(changes.values()) and weights.manifest.compression is None:
        raise WeightsInvalid("The weights change no layer.")
    ready = {site.name for layer in model.cross_attention() for site in (layer.key, layer.value)}
    if weights.manifest.side == "text" and (changes["encoder"] or changes["site"].keys() - ready):
        raise WeightsInvalid(
            "The weights call themselves text side but change other layers than keys and values."
        )
    return changes


def not_usable(name: str) -> WeightsInvalid:
    """For a module that is not there, or whose tensors are not those of the method."""
    return WeightsInvalid(f"The change of {name} is not one that this base model could use.")


def weight_edit(
    modules: Mapping[Part, Modules], changes: Mapping[Part, Mapping[str, MatrixChange]]
) -> WeightEdit:
    """Each change at the ``weight`` of its module."""
    denoiser, encoder = (
        {f"{modules[part][name][0]}.weight": change for name, change in changes[part].items()}
        for part in ("site", "encoder")
    )
    return WeightEdit(denoiser, encoder)
