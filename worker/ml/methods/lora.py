"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685; methods.md 8), trained as DreamBooth is (methods.md 2).

``W' = W + (alpha / r) B A`` (section 4.1) for the chosen layers of the denoiser and, if wished, of the text encoder.
A starts from N(0, 1 / r^2) as in diffusers' scripts, B from 0, so that the first prediction is the base model's. The
objective is the base model's own loss on the photos, captioned "photo of a V* dog", plus lambda times the same on
generated images of the class. V* is a rare token's row; with ``train_token`` it is learnt too. With ``use_dora`` the
lengths of the rows of ``W'`` are learned beside it (`worker.ml.weight_decomposition`).

Keys and values of the cross-attention alone are text side: a `TextEdit` with low-rank sites. Everything else is weight
side: two thin layers beside each frozen one while it is trained (`worker.ml.low_rank.beside`), installed dense when
used.

With ``basis`` "orthogonal" (Orthogonal Adaptation, Po et al., CVPR 2024, arXiv 2312.02432; methods.md 13.2) A is fixed:
columns of a basis that all concepts share (`worker.ml.orthogonal_basis`), others for every concept. B alone is learnt.

Departures: fixed rows of A are as long as learned ones start, ``sqrt(in) / r``, so that rates mean the same, where the
paper has unit vectors and a word with vectors for every layer. Pivotal tuning learns word and layers in one go, where
cloneofsimo's has two stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from backend.schemas.methods.lora import CARD, LoraParams, side
from worker.ml import weight_decomposition as decomposition
from worker.ml.adapters import Adapters, Rates, deltas_of, edit_of, installation_of
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel, encoder_modules
from worker.ml.installation import WeightEdit
from worker.ml.low_rank import LowRankChange, beside, factor_shapes, matrix_shape
from worker.ml.module_changes import Modules, Part, not_usable, read_changes
from worker.ml.orthogonal_basis import basis_columns
from worker.ml.run import Run
from worker.ml.stored_changes import read_change
from worker.ml.streams import rng
from worker.ml.training.dreambooth_recipe import Recipe
from worker.ml.training.lessons import ConceptExamples
from worker.ml.training.trainee import Trainee
from worker.ml.weight_decomposition import DecomposedChange

ENCODER_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
CONVOLUTIONS = (".resnets.", ".downsamplers.", ".upsamplers.")
Change = LowRankChange | DecomposedChange
"""Without and with ``use_dora``."""


class Lora:
    """The method; it holds no state."""

    name = CARD.name

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: LoraParams,
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
        if params.basis == "orthogonal":
            check_columns(modules, params)
        thin = {key: untrained(module, key, params, seed) for key, module in modules.items()}
        factors = {
            f"{key}.{part}": tensor
            for key, change in thin.items()
            for part, tensor in (("down", change.down), ("up", change.up))
        }
        changes: Mapping[str, Change] = thin
        if params.use_dora:
            decomposed = {key: in_rows(modules[key], change) for key, change in thin.items()}
            factors |= {f"{key}.magnitude": change.magnitude for key, change in decomposed.items()}
            changes = decomposed
        alphas = {key: scale(params) * params.rank for key in thin}
        fixed = {name for name in factors if params.basis == "orthogonal" and name.endswith(".down")}
        adapters = Adapters(changes, factors, alphas, fixed)

        def alongside() -> AbstractContextManager[None]:
            if params.use_dora:
                return decomposition.beside({modules[key]: change for key, change in decomposed.items()})
            return beside({modules[key]: change for key, change in thin.items()})

        rates = Rates(
            params.learning_rate,
            params.token_learning_rate if params.train_token else 0.0,
            params.weight_decay,
            params.text_learning_rate,
        )
        text_side = side(params) == "text"
        return adapters.trainee(recipe, rates, None if text_side else alongside, prior_dir=prior_dir, run=run)

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        return edit_of(model, weights, learned_changes(model, weights))

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> WeightEdit | None:
        return installation_of(weights, changeable(model), learned_changes(model, weights))

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        return deltas_of(learned_changes(model, weights))


def scale(params: LoraParams) -> float:
    """``alpha / r``; alpha 0 counts as r."""
    return params.alpha / params.rank if params.alpha > 0 else 1.0


def chosen_modules(model: DiffusionModel, params: LoraParams) -> dict[str, torch.nn.Module]:
    """{"site.<name>" or "encoder.<name>": module} of the layers that get a change. Raises `InputInvalid` for none."""
    ready = {site.name for layer in model.cross_attention() for site in (layer.key, layer.value)}
    chosen = {}
    for site in model.sites():
        attention = {
            "all": site.group in ("cross-attention", "self-attention"),
            "cross": site.group == "cross-attention",
            "key-value": site.name in ready,
            "none": False,
        }[params.attention]
        linear = params.feed_forward and ".ff." in site.name
        convolution = (
            params.convolution
            and isinstance(site.module, torch.nn.Conv2d)
            and any(part in site.name for part in CONVOLUTIONS)
        )
        if attention or linear or convolution:
            chosen[f"site.{site.name}"] = site.module
    if params.text_encoder:
        for name, (_, module) in encoder_modules(model).items():
            if name.rpartition(".")[2] in ENCODER_LAYERS:
                chosen[f"encoder.{name}"] = module
    if not chosen:
        raise InputInvalid("No layers are chosen: LoRA needs attention, feed-forward or convolution layers.")
    return chosen


def check_rank(modules: Mapping[str, torch.nn.Module], rank: int) -> None:
    """Raises `InputInvalid` where the rank is larger than a matrix."""
    smallest = min(modules, key=lambda key: min(matrix_shape(modules[key].get_parameter("weight"))))
    rows, columns = matrix_shape(modules[smallest].get_parameter("weight"))
    if rank > min(rows, columns):
        raise InputInvalid(
            f"Rank {rank} is larger than the matrix of {smallest.partition('.')[2]} ({rows} x {columns}): "
            f"at most {min(rows, columns)} is possible."
        )


def check_columns(modules: Mapping[str, torch.nn.Module], params: LoraParams) -> None:
    """Raises `InputInvalid` where a layer reads too few numbers to have the columns that are asked for."""
    read = {key: matrix_shape(module.get_parameter("weight"))[1] for key, module in modules.items()}
    narrow = min(read, key=lambda key: read[key])
    if params.first_column + params.rank > read[narrow]:
        raise InputInvalid(
            f"Columns {params.first_column} to {params.first_column + params.rank - 1} are asked for, and "
            f"{narrow.partition('.')[2]} reads {read[narrow]} numbers only: at rank {params.rank} the first column is "
            f"at most {read[narrow] - params.rank}."
        )


def untrained(module: torch.nn.Module, key: str, params: LoraParams, seed: int) -> LowRankChange:
    """A from N(0, 1 / r^2), drawn by seed and name, or columns of the orthogonal basis, equally long; B = 0; fp32 on
    the device.
    """
    weight = module.get_parameter("weight")
    down_shape, up_shape = factor_shapes(weight, params.rank)
    if params.basis == "orthogonal":
        width = matrix_shape(weight)[1]
        columns = basis_columns(width, params.first_column, params.rank, params.basis_seed)
        down = (columns.T * (width**0.5 / params.rank)).reshape(down_shape).float()
    else:
        down = torch.randn(down_shape, generator=rng(seed, f"lora/{key}", 0)) / params.rank
    return LowRankChange(down.to(weight.device), torch.zeros(up_shape, device=weight.device), scale(params))


def in_rows(
    module: torch.nn.Module, change: LowRankChange, magnitude: Tensor | None = None
) -> DecomposedChange:
    """DoRA's change of the module, with its rows as long as the base's where no ``magnitude`` is given."""
    weight = module.get_parameter("weight").detach()
    return DecomposedChange(
        change, change.up.new_zeros(len(weight)) if magnitude is None else magnitude, weight
    )


def changeable(model: DiffusionModel) -> dict[Part, Modules]:
    """Every module that could have a change."""
    return {
        "site": {site.name: (site.name, site.module) for site in model.sites()},
        "encoder": encoder_modules(model),
    }


def learned_changes(model: DiffusionModel, weights: ConceptWeights) -> dict[Part, dict[str, Change]]:
    """Changes of the denoiser's sites and of the text encoder's modules, fp32 on the device. Raises
    `WeightsInvalid`.
    """
    return read_changes(model, weights, changeable(model), learned_change)


def learned_change(key: str, module: torch.nn.Module, parts: Mapping[str, Tensor]) -> Change:
    """The change of one module from its tensors in the file. Raises `WeightsInvalid`."""
    name, weight = key.partition(".")[2], module.get_parameter("weight")
    factors = {part: tensor for part, tensor in parts.items() if part != "magnitude"}
    change = read_change(name, factors, tuple(weight.shape), weight.device)
    if not isinstance(change, LowRankChange):
        raise not_usable(name)
    if (magnitude := parts.get("magnitude")) is None:
        return change
    if tuple(magnitude.shape) != (len(weight),):
        raise not_usable(name)
    return in_rows(module, change, magnitude.to(weight.device).float())
