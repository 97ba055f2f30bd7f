"""What adapters have in common (LoRA, LoHa, LoKr): each chosen layer gets a change that is made of few numbers, trained
beside the frozen weight by DreamBooth's recipe (methods.md 2) and used as the change of a matrix.

A method says which layers, what their changes are made of, and how they are read back. The rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from backend.schemas.methods.attention_adapter import AttentionAdapterParams, side
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import MatrixChange, TextEdit
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.module_changes import Modules, Part, weight_edit
from worker.ml.run import Run
from worker.ml.taught_words import rare_rows, taught_rows
from worker.ml.training.dreambooth_recipe import Recipe
from worker.ml.training.trainee import Group, Trainee

Attention = Literal["all", "cross", "key-value"]
Read = Mapping[Part, Mapping[str, MatrixChange]]
"""Changes of the denoiser's sites and of the text encoder's modules, as they were read from weights."""


@dataclass(frozen=True)
class Rates:
    """Learning rates of the changes and of the words (0: they stay the rare ones they start from), and the decoupled
    decay of the changes.
    """

    denoiser: float
    word: float
    decay: float
    text_encoder: float = 0.0


@dataclass(frozen=True, eq=False)
class Adapters:
    """What is to be trained. ``changes``: by "site.<name>" or "encoder.<name>"; ``factors``: the tensors they are made
    of, by the names they get in a file; ``alphas``: the alpha in effect, by the key of its change; ``fixed``: the names
    of factors that stay as they are.
    """

    changes: Mapping[str, MatrixChange]
    factors: Mapping[str, Tensor]
    alphas: Mapping[str, float]
    fixed: Set[str] = frozenset()

    def trainee(
        self,
        recipe: Recipe,
        rates: Rates,
        alongside: Callable[[], AbstractContextManager[None]] | None,
        *,
        prior_dir: Path,
        run: Run,
    ) -> Trainee:
        """``alongside`` puts the changes beside their layers; None on the text side, where `text_kv` adds them. Raises
        what `Recipe.lessons` raises.
        """
        words = rare_rows(recipe.model, [concept.token for concept in recipe.concepts])
        sites = {key.removeprefix("site."): change for key, change in self.changes.items()}
        edit = TextEdit(words, {} if alongside else sites)
        lessons = recipe.lessons(edit, prior_dir, run)
        taught = {f"token.{name}.learned": rows.learned for name, rows in words.items()}
        free = {name: tensor for name, tensor in self.factors.items() if name not in self.fixed}
        trained = {**free, **(taught if rates.word else {})}
        for tensor in trained.values():
            tensor.requires_grad_(True)

        def group(prefix: str, rate: float, decay: float) -> Group:
            return Group({n: t for n, t in trained.items() if n.startswith(prefix)}, rate, decay)

        groups = (
            group("site.", rates.denoiser, rates.decay),
            group("encoder.", rates.text_encoder, rates.decay),
            group("token.", rates.word, 0.0),
        )

        def learned() -> dict[str, Tensor]:
            alphas = {f"{key}.alpha": torch.tensor(alpha) for key, alpha in self.alphas.items()}
            return {
                **{name: tensor.detach().cpu().clone() for name, tensor in self.factors.items()},
                **alphas,
            }

        return recipe.trainee(edit, lessons, groups, learned, alongside or nullcontext)


def edit_of(model: DiffusionModel, weights: ConceptWeights, read: Read) -> TextEdit:
    """The words, and on the text side the changes of keys and values."""
    return TextEdit(taught_rows(model, weights), read["site"] if weights.manifest.side == "text" else {})


def installation_of(
    weights: ConceptWeights, modules: Mapping[Part, Modules], read: Read
) -> WeightEdit | None:
    """The changes as they are installed; None on the text side."""
    return None if weights.manifest.side == "text" else weight_edit(modules, read)


def deltas_of(read: Read) -> dict[str, Tensor]:
    """{site: dense change}."""
    return {name: change.dense().float() for name, change in read["site"].items()}


def linear_sites(model: DiffusionModel) -> dict[Part, Modules]:
    """Every linear layer of the denoiser: what adapters without convolutions could change."""
    sites = (site for site in model.sites() if isinstance(site.module, torch.nn.Linear))
    return {"site": {site.name: (site.name, site.module) for site in sites}, "encoder": {}}


def attention_layers(model: DiffusionModel, chosen: Attention) -> dict[str, torch.nn.Module]:
    """{"site.<name>": module} of the linear layers of all attention, of the cross-attention, or of its keys and
    values.
    """
    ready = {site.name for layer in model.cross_attention() for site in (layer.key, layer.value)}
    groups = {"all": ("cross-attention", "self-attention"), "cross": ("cross-attention",), "key-value": ()}
    wanted = groups[chosen]
    return {
        f"site.{site.name}": site.module
        for site in model.sites()
        if isinstance(site.module, torch.nn.Linear)
        and (site.group in wanted or (not wanted and site.name in ready))
    }


class LinearChange(MatrixChange, Protocol):
    """A change of a linear layer that knows what it adds to the layer's output."""

    def added(self, states: Tensor) -> Tensor:
        """``dW x``: [..., in] -> [..., out], fp32, differentiable in what the change is made of."""

    def factors(self) -> dict[str, Tensor]:
        """What it is made of, by the names that these have in a file."""


def attention_trainee(
    recipe: Recipe,
    modules: Mapping[str, torch.nn.Module],
    changes: Mapping[str, LinearChange],
    alphas: Mapping[str, float],
    *,
    prior_dir: Path,
    run: Run,
) -> Trainee:
    """Of changes of `attention_layers`, untrained, as `AttentionAdapterParams` say. Raises what `Recipe.lessons`
    raises.
    """
    params = recipe.params
    assert isinstance(params, AttentionAdapterParams)
    factors = {
        f"{key}.{part}": tensor
        for key, change in changes.items()
        for part, tensor in change.factors().items()
    }

    def alongside() -> AbstractContextManager[None]:
        return beside({modules[key]: change for key, change in changes.items()})

    return Adapters(changes, factors, alphas).trainee(
        recipe,
        Rates(params.learning_rate, params.token_learning_rate, params.weight_decay),
        None if side(params) == "text" else alongside,
        prior_dir=prior_dir,
        run=run,
    )


@contextmanager
def beside(layers: Mapping[torch.nn.Module, LinearChange]) -> Iterator[None]:
    """While open, each layer's output is ``W x + b + dW x``; then as before."""

    def hook(change: LinearChange) -> Any:
        def add(_: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + change.added(arguments[0].float()).to(output.dtype)

        return add

    handles = [module.register_forward_hook(hook(change)) for module, change in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
