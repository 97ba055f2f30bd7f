"""LoHa (FedPara, Hyeon-Woo et al., ICLR 2022, arXiv 2108.06098), trained as DreamBooth is (methods.md 2).

``W' = W + (alpha / r) (B_1 A_1) * (B_2 A_2)``, the product taken number by number (section 2.2, "Hadamard"): with two
pairs of rank r its rank can be r^2, for twice the numbers of one pair. Starts are those of LyCORIS, which brought it to
diffusion models: A_1 from N(0, 1), A_2 and B_1 from N(0, 0.1^2), B_2 from 0, so that the first prediction is the base
model's. Rows of a linear layer only; convolutions are left alone.

Keys and values of the cross-attention alone are text side; everything else is weight side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from backend.schemas.methods.loha import CARD, LohaParams, side
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.module_changes import Modules, Part, not_usable, read_changes, weight_edit
from worker.ml.run import Run
from worker.ml.streams import rng
from worker.ml.taught_words import rare_rows, taught_rows
from worker.ml.training.dreambooth_recipe import Recipe
from worker.ml.training.lessons import ConceptExamples
from worker.ml.training.trainee import Group, Trainee

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
        modules = chosen_modules(model, params)
        check_rank(modules, params.rank)
        changes = {name: untrained(module, name, params, seed) for name, module in modules.items()}
        text_side = side(params) == "text"
        words = rare_rows(model, [concept.token for concept in concepts])
        edit = TextEdit(words, changes if text_side else {})
        lessons = recipe.lessons(edit, prior_dir, run)
        factors = {
            f"site.{name}.{part}": tensor
            for name, change in changes.items()
            for part, tensor in change.factors().items()
        }
        learning = params.token_learning_rate > 0
        taught = {f"token.{name}.learned": rows.learned for name, rows in words.items()} if learning else {}
        for tensor in (*factors.values(), *taught.values()):
            tensor.requires_grad_(True)
        groups = (
            Group(factors, params.learning_rate, params.weight_decay),
            Group(taught, params.token_learning_rate, 0.0),
        )

        def learned() -> dict[str, Tensor]:
            alphas = {
                f"site.{name}.alpha": torch.tensor(change.factor * params.rank)
                for name, change in changes.items()
            }
            return {**{name: tensor.detach().cpu().clone() for name, tensor in factors.items()}, **alphas}

        def alongside() -> Any:
            return beside({modules[name]: change for name, change in changes.items()})

        return recipe.trainee(edit, lessons, groups, learned, nullcontext if text_side else alongside)

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        changes, words = learned_changes(model, weights), taught_rows(model, weights)
        return TextEdit(words, changes["site"] if weights.manifest.side == "text" else {})

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> WeightEdit | None:
        changes = learned_changes(model, weights)
        return None if weights.manifest.side == "text" else weight_edit(changeable(model), changes)

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        return {name: change.dense() for name, change in learned_changes(model, weights)["site"].items()}


def chosen_modules(model: DiffusionModel, params: LohaParams) -> dict[str, torch.nn.Module]:
    """{site: module} of the layers that get a change."""
    ready = {site.name for layer in model.cross_attention() for site in (layer.key, layer.value)}
    groups = {"all": ("cross-attention", "self-attention"), "cross": ("cross-attention",), "key-value": ()}
    wanted = groups[params.attention]
    return {
        site.name: site.module
        for site in model.sites()
        if isinstance(site.module, torch.nn.Linear)
        and (site.group in wanted or (not wanted and site.name in ready))
    }


def check_rank(modules: Mapping[str, torch.nn.Module], rank: int) -> None:
    """Raises `InputInvalid` where the rank is larger than a matrix."""
    name, smallest = min(
        ((name, min(module.get_parameter("weight").shape)) for name, module in modules.items()),
        key=lambda each: each[1],
    )
    if rank > smallest:
        raise InputInvalid(
            f"Rank {rank} is larger than the matrix of {name}: at most {smallest} is possible."
        )


def untrained(module: torch.nn.Module, name: str, params: LohaParams, seed: int) -> HadamardChange:
    """Drawn by seed and name; B_2 = 0; fp32 on the device."""
    weight = module.get_parameter("weight")
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


@contextmanager
def beside(layers: Mapping[torch.nn.Module, HadamardChange]) -> Iterator[None]:
    """While open, each Linear's output is ``W x + b + dW x``, differentiable in the factors; then as before."""

    def hook(change: HadamardChange) -> Any:
        def add(_: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + functional.linear(arguments[0].float(), change.dense()).to(output.dtype)

        return add

    handles = [module.register_forward_hook(hook(change)) for module, change in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def changeable(model: DiffusionModel) -> dict[Part, Modules]:
    """Every module that could have a change."""
    linear = {
        site.name: (site.name, site.module)
        for site in model.sites()
        if isinstance(site.module, torch.nn.Linear)
    }
    return {"site": linear, "encoder": {}}


def learned_changes(model: DiffusionModel, weights: ConceptWeights) -> dict[Part, dict[str, HadamardChange]]:
    """Changes of the denoiser's sites, fp32 on the device. Raises `WeightsInvalid`."""
    return read_changes(model, weights, changeable(model), learned_change)


def learned_change(key: str, module: torch.nn.Module, parts: Mapping[str, Tensor]) -> HadamardChange:
    """The change of one module from its tensors in the file. Raises `WeightsInvalid`."""
    name, weight = key.partition(".")[2], module.get_parameter("weight")
    if parts.keys() != {*DEVIATIONS, "alpha"} or parts["alpha"].ndim:
        raise not_usable(name)
    rank = len(parts["first_down"])
    out, width = weight.shape
    for part in DEVIATIONS:
        if tuple(parts[part].shape) != ((rank, width) if part.endswith("down") else (out, rank)) or not rank:
            raise not_usable(name)
    factors = {part: parts[part].to(weight.device).float() for part in DEVIATIONS}
    return HadamardChange(**factors, factor=float(parts["alpha"]) / rank)
