"""LoKr (LyCORIS, Yeh et al., ICLR 2024, arXiv 2309.14859, section 3.2), trained as DreamBooth is (methods.md 2).

``W' = W + C (x) D``, the Kronecker product: the block D [k, n] stands at every place (a, b) of C [l, m], times C_ab, so
that ``out = l k`` and ``in = m n``. Its rank is the product of theirs. D is whole, or ``(alpha / r) D_up D_down`` where
r is less than half of its larger side. Starts are those of LyCORIS: C and D_up uniform as Kaiming's, the last factor
(D, or D_down) 0, so that the first prediction is the base model's. Linear layers only.

Keys and values of the cross-attention alone are text side; everything else is weight side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.schemas.methods.lokr import CARD, LokrParams, split
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
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.module_changes import Part, not_usable, read_changes
from worker.ml.run import Run
from worker.ml.singular_values import of_matrix, of_product
from worker.ml.stored_changes import is_matrix, read_change
from worker.ml.streams import rng
from worker.ml.training.dreambooth_recipe import Recipe
from worker.ml.training.lessons import ConceptExamples
from worker.ml.training.trainee import Trainee

WHOLE, THIN = ("first", "second"), ("first", "second_up", "second_down")
"""Parts of a site in a file: C and D, or C and the factors of D, with ``alpha``."""


@dataclass(frozen=True, eq=False)
class KroneckerChange:
    """``factor C (x) (U V)``: ``first`` C [l, m], ``second_up`` U [k, r], ``second_down`` V [r, n]; without V the block
    is U itself, [k, n].
    """

    first: Tensor
    second_up: Tensor
    second_down: Tensor | None
    factor: float

    def block(self) -> Tensor:
        """D, [k, n]."""
        return self.second_up if self.second_down is None else self.second_up @ self.second_down

    def dense(self) -> Tensor:
        """[l k, m n], differentiable in all of them."""
        return self.factor * torch.kron(self.first, self.block())

    def added(self, states: Tensor) -> Tensor:
        """``dW x`` without dW: [..., m n] -> [..., l k]. ``(C (x) D) x`` is ``C X D^T`` of x written as X [m, n]."""
        rows = states.reshape(*states.shape[:-1], self.first.shape[1], -1)
        narrow = rows if self.second_down is None else rows @ self.second_down.T
        wide: Tensor = self.factor * (self.first @ (narrow @ self.second_up.T))
        return wide.flatten(-2)

    def factors(self) -> dict[str, Tensor]:
        """By their names in a file."""
        if self.second_down is None:
            return dict(zip(WHOLE, (self.first, self.second_up), strict=True))
        return dict(zip(THIN, (self.first, self.second_up, self.second_down), strict=True))

    def singular_values(self) -> Tensor:
        """Of `dense`, float64, largest first: every product of one of C with one of D; the rest are 0."""
        thin = self.second_down
        block = of_matrix(self.second_up) if thin is None else of_product(self.second_up, thin)
        values = abs(self.factor) * torch.outer(of_matrix(self.first), block).flatten()
        return values.sort(descending=True).values


class Lokr:
    """The method; it holds no state."""

    name = CARD.name

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: LokrParams,
        *,
        seed: int,
        prior_dir: Path,
        previews: Sequence[str],
        run: Run,
    ) -> Trainee:
        recipe = Recipe(CARD, model, concepts, params, seed, previews)
        recipe.check()
        modules = attention_layers(model, params.attention)
        changes = {key: untrained(module, key, params, seed) for key, module in modules.items()}
        thin = {key: change for key, change in changes.items() if change.second_down is not None}
        alphas = {key: change.factor * params.rank for key, change in thin.items()}
        return attention_trainee(recipe, modules, changes, alphas, prior_dir=prior_dir, run=run)

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        return edit_of(model, weights, learned_changes(model, weights))

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> WeightEdit | None:
        return installation_of(weights, linear_sites(model), learned_changes(model, weights))

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        return deltas_of(learned_changes(model, weights))


def untrained(module: torch.nn.Module, key: str, params: LokrParams, seed: int) -> KroneckerChange:
    """Drawn by seed and name; D = 0; fp32 on the device."""
    weight = module.get_parameter("weight")
    (above, k), (across, n) = (split(size, params.factor) for size in weight.shape)

    def drawn(part: str, rows: int, columns: int) -> Tensor:
        """Uniform within 1 / sqrt(columns), as Kaiming's with a = sqrt(5)."""
        numbers = torch.rand(rows, columns, generator=rng(seed, f"lokr/{key}/{part}", 0))
        found: Tensor = (2 * numbers - 1) / columns**0.5
        return found.to(weight.device)

    def zeros(rows: int, columns: int) -> Tensor:
        return torch.zeros(rows, columns, device=weight.device)

    first, rank = drawn("first", above, across), params.rank
    if 2 * rank >= max(k, n):
        return KroneckerChange(first, zeros(k, n), None, 1.0)
    factor = params.alpha / rank if params.alpha > 0 else 1.0
    return KroneckerChange(first, drawn("second_up", k, rank), zeros(rank, n), factor)


def learned_changes(model: DiffusionModel, weights: ConceptWeights) -> dict[Part, dict[str, MatrixChange]]:
    """Changes of the denoiser's sites, fp32 on the device. Raises `WeightsInvalid`."""
    return read_changes(model, weights, linear_sites(model), learned_change)


def learned_change(key: str, module: torch.nn.Module, parts: Mapping[str, Tensor]) -> MatrixChange:
    """The change of one module from its tensors in the file: a `KroneckerChange`, or in weights that were made smaller
    what is left of one. Raises `WeightsInvalid`.
    """
    name, weight = key.partition(".")[2], module.get_parameter("weight")
    if is_matrix(parts):
        return read_change(name, parts, tuple(weight.shape), weight.device)
    thin = parts.keys() == {*THIN, "alpha"}
    if not (thin or parts.keys() == set(WHOLE)) or (thin and parts["alpha"].ndim):
        raise not_usable(name)
    held = {part: tensor.to(weight.device).float() for part, tensor in parts.items() if part != "alpha"}
    if any(tensor.ndim != 2 or not tensor.numel() for tensor in held.values()):
        raise not_usable(name)
    first = held["first"]
    up, down = (held["second_up"], held["second_down"]) if thin else (held["second"], None)
    columns = up.shape[1] if down is None else down.shape[1]
    fits = down is None or up.shape[1] == len(down)
    if not fits or (len(first) * len(up), first.shape[1] * columns) != tuple(weight.shape):
        raise not_usable(name)
    factor = float(parts["alpha"]) / len(down) if down is not None else 1.0
    return KroneckerChange(first, up, down, factor)
