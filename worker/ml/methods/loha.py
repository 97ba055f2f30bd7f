"""LoHa (FedPara, Hyeon-Woo et al., ICLR 2022, arXiv 2108.06098), trained as DreamBooth is (methods.md 2).

``W' = W + (alpha / r) (B_1 A_1) * (B_2 A_2)``, the product taken number by number (section 2.2, "Hadamard"): with two
pairs of rank r its rank can be r^2, for twice the numbers of one pair. Starts are those of LyCORIS, which brought it to
diffusion models: A_1 from N(0, 1), A_2 and B_1 from N(0, 0.1^2), B_2 from 0, so that the first prediction is the base
model's. Rows of a linear layer only; convolutions are left alone.

Keys and values of the cross-attention alone are text side; everything else is weight side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from backend.schemas.methods.loha import CARD, LohaParams
from worker.ml.adapters import (
    attention_layers,
    attention_trainee,
    deltas_of,
    edit_of,
    installation_of,
    linear_sites,
)
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import MatrixChange, TextEdit
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.module_changes import Part, not_usable, read_changes
from worker.ml.run import Run
from worker.ml.stored_changes import is_matrix, read_change
from worker.ml.streams import rng
from worker.ml.training.dreambooth_recipe import Recipe
from worker.ml.training.lessons import ConceptExamples
from worker.ml.training.trainee import Trainee

DEVIATIONS = {"first_down": 1.0, "first_up": 0.1, "second_down": 0.1, "second_up": 0.0}
"""Of the starts, by the names that the factors have in a file."""


@dataclass(frozen=True, eq=False)
class HadamardChange:
    """``factor (B_1 A_1) * (B_2 A_2)``: downs [r, in], ups [out, r]; ``factor`` is alpha / r."""

    first_down: Tensor
    first_up: Tensor
    second_down: Tensor
    second_up: Tensor
    factor: float

    def dense(self) -> Tensor:
        """[out, in], differentiable in all four."""
        return self.factor * (self.first_up @ self.first_down) * (self.second_up @ self.second_down)

    def added(self, states: Tensor) -> Tensor:
        """What it adds to the output of its layer, [..., in] -> [..., out]."""
        return functional.linear(states, self.dense())

    def factors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in DEVIATIONS}


class Loha:
    """The method; it holds no state."""

    name = CARD.name

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: LohaParams,
        *,
        seed: int,
        prior_dir: Path,
        previews: Sequence[str],
        run: Run,
    ) -> Trainee:
        recipe = Recipe(CARD, model, concepts, params, seed, previews)
        recipe.check()
        modules = attention_layers(model, params.attention)
        check_rank(modules, params.rank)
        changes = {key: untrained(module, key, params, seed) for key, module in modules.items()}
        alphas = {key: change.factor * params.rank for key, change in changes.items()}
        return attention_trainee(recipe, modules, changes, alphas, prior_dir=prior_dir, run=run)

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        return edit_of(model, weights, learned_changes(model, weights))

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> WeightEdit | None:
        return installation_of(weights, linear_sites(model), learned_changes(model, weights))

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        return deltas_of(learned_changes(model, weights))


def check_rank(modules: Mapping[str, torch.nn.Module], rank: int) -> None:
    """Raises `InputInvalid` where the rank is larger than a matrix."""
    key, smallest = min(
        ((key, min(module.get_parameter("weight").shape)) for key, module in modules.items()),
        key=lambda each: each[1],
    )
    if rank > smallest:
        name = key.partition(".")[2]
        raise InputInvalid(
            f"Rank {rank} is larger than the matrix of {name}: at most {smallest} is possible."
        )


def untrained(module: torch.nn.Module, key: str, params: LohaParams, seed: int) -> HadamardChange:
    """Drawn by seed and name; B_2 = 0; fp32 on the device."""
    weight, name = module.get_parameter("weight"), key.partition(".")[2]
    out, width = weight.shape
    shapes = {
        part: (params.rank, width) if part.endswith("down") else (out, params.rank) for part in DEVIATIONS
    }
    drawn = {
        part: deviation * torch.randn(shapes[part], generator=rng(seed, f"loha/{name}/{part}", 0))
        for part, deviation in DEVIATIONS.items()
    }
    factor = params.alpha / params.rank if params.alpha > 0 else 1.0
    return HadamardChange(**{part: tensor.to(weight.device) for part, tensor in drawn.items()}, factor=factor)


def learned_changes(model: DiffusionModel, weights: ConceptWeights) -> dict[Part, dict[str, MatrixChange]]:
    """Changes of the denoiser's sites, fp32 on the device. Raises `WeightsInvalid`."""
    return read_changes(model, weights, linear_sites(model), learned_change)


def learned_change(key: str, module: torch.nn.Module, parts: Mapping[str, Tensor]) -> MatrixChange:
    """The change of one module from its tensors in the file: a `HadamardChange`, or in weights that were made smaller
    what is left of one. Raises `WeightsInvalid`.
    """
    name, weight = key.partition(".")[2], module.get_parameter("weight")
    if is_matrix(parts):
        return read_change(name, parts, tuple(weight.shape), weight.device)
    if parts.keys() != {*DEVIATIONS, "alpha"} or parts["alpha"].ndim:
        raise not_usable(name)
    rank = len(parts["first_down"])
    out, width = weight.shape
    for part in DEVIATIONS:
        if tuple(parts[part].shape) != ((rank, width) if part.endswith("down") else (out, rank)) or not rank:
            raise not_usable(name)
    factors = {part: parts[part].to(weight.device).float() for part in DEVIATIONS}
    return HadamardChange(**factors, factor=float(parts["alpha"]) / rank)
