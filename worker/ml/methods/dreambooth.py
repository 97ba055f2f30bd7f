"""DreamBooth (Ruiz et al., CVPR 2023, arXiv 2208.12242; methods.md 2): the whole denoiser.

``L = E || target - f(x_t, t, c) ||^2 + lambda E || target' - f(x'_t', t', c') ||^2`` (eq. 2, with the base model's own
target): photos with captions that name a rare token V* and the class, and images of the class that the base model drew
before anything was changed. Both terms draw noise and time step for each row. Trained is every parameter of the
denoiser; with ``text_encoder`` also every parameter of the text encoder but its table of words, of which the row V*
alone is trained. The autoencoder is frozen.

Trained are fp32 copies that stand in the places of the parameters (`worker.ml.installation.replaced`), so the base
model's own bits are never written. Stored are differences in half precision: off by at most 2^-11 of the difference
or 3e-8, whichever is larger.

Departures: no weight decay (the reference script's 1e-2 pulls the whole base model towards zero); the paper's captions
are "a [V] dog" and "a dog", ours are those of the other methods, so that all share the images of a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from backend.schemas.methods.dreambooth import CARD, DreamBoothParams
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import MatrixChange, TextEdit
from worker.ml.errors import MethodUnsupported, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit, replaced
from worker.ml.run import Run
from worker.ml.stored_changes import read_change
from worker.ml.taught_words import rare_rows, taught_rows
from worker.ml.training.averaging import averaged
from worker.ml.training.dreambooth_recipe import Recipe
from worker.ml.training.lessons import ConceptExamples
from worker.ml.training.optimiser import check_optimiser
from worker.ml.training.provenance import check_base
from worker.ml.training.recomputing import recomputed
from worker.ml.training.trainee import Group, Trainee

STORED = torch.float16
FACTORS = ("down", "up", "scale")
"""What weights that were made smaller hold in the place of a matrix's ``delta``."""


class DreamBooth:
    """The method; it holds no state."""

    name = CARD.name

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: DreamBoothParams,
        *,
        seed: int,
        prior_dir: Path,
        previews: Sequence[str],
        run: Run,
    ) -> Trainee:
        recipe = Recipe(CARD, model, concepts, params, seed, previews)
        recipe.check()
        if model.dtype.itemsize < torch.float32.itemsize:
            raise MethodUnsupported(
                f"{CARD.title} trains in single precision; this base model is loaded in half."
            )
        check_optimiser(params.optimiser, model.device)
        edit = TextEdit(rare_rows(model, [concept.token for concept in concepts]), {})
        lessons = recipe.lessons(edit, prior_dir, run)
        base = {"site": denoiser_parameters(model), "encoder": {}}
        if params.text_encoder:
            base["encoder"] = encoder_parameters(model)
        copies = {
            part: {path: torch.nn.Parameter(each.detach().clone()) for path, each in parameters.items()}
            for part, parameters in base.items()
        }
        words = {f"token.{name}.learned": rows.learned for name, rows in edit.tokens.items()}
        groups = [Group(_keyed("site", copies["site"]), params.learning_rate, 0.0)]
        if params.text_encoder or params.train_token:
            for tensor in words.values():
                tensor.requires_grad_(True)
        if params.text_encoder:
            encoder = {**_keyed("encoder", copies["encoder"]), **words}
            groups.append(Group(encoder, params.text_learning_rate, 0.0))
        elif params.train_token:
            groups.append(Group(words, params.token_learning_rate, 0.0))

        @contextmanager
        def in_their_places() -> Iterator[None]:
            with (
                replaced(model.denoiser, copies["site"]),
                replaced(model.text_encoder, copies["encoder"]),
                recomputed(model.denoiser) if params.gradient_checkpointing else nullcontext(),
            ):
                yield

        def learned() -> dict[str, Tensor]:
            return {
                key: (trained.detach() - base[part][path].detach()).to(STORED).cpu()
                for part, parameters in copies.items()
                for (path, trained), key in zip(parameters.items(), _keyed(part, parameters), strict=True)
            }

        trainee = recipe.trainee(edit, lessons, groups, learned, in_their_places)
        return averaged(replace(trainee, optimiser=params.optimiser), params.ema_decay)

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        differences(model, weights)
        return TextEdit(taught_rows(model, weights), {})

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> WeightEdit:
        return WeightEdit(*differences(model, weights))

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        denoiser, _ = differences(model, weights)
        changed = {site.name: denoiser.get(f"{site.name}.weight") for site in model.sites()}
        return {name: change.dense().float() for name, change in changed.items() if change is not None}


def denoiser_parameters(model: DiffusionModel) -> dict[str, torch.nn.Parameter]:
    """Every parameter, by path."""
    return dict(model.denoiser.named_parameters())


def encoder_parameters(model: DiffusionModel) -> dict[str, torch.nn.Parameter]:
    """Every parameter but the table of words, by path."""
    table = model.text_encoder.get_input_embeddings().weight  # type: ignore[operator]
    return {path: each for path, each in model.text_encoder.named_parameters() if each is not table}


def tensor_key(part: str, path: str) -> str:
    """Name in the weights file: "conv_in.weight" is ``site.conv_in.delta``, "conv_in.bias" ``site.conv_in.bias_delta``.

    The encoder's names lack the ``text_model.`` of some versions of the library (methods.md 16.1).
    """
    module, _, leaf = path.removeprefix("text_model.").rpartition(".")
    return f"{part}.{module}.{'delta' if leaf == 'weight' else f'{leaf}_delta'}"


def _keyed(part: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {tensor_key(part, path): tensor for path, tensor in parameters.items()}


def differences(
    model: DiffusionModel, weights: ConceptWeights
) -> tuple[dict[str, MatrixChange], dict[str, MatrixChange]]:
    """Differences by path: of the denoiser, all of them; of the text encoder, all or none; of weights that were made
    smaller, those of which something was kept. Raises `WeightsInvalid`.
    """
    check_base(model, weights)
    known = [name for name in weights.tensors if not name.startswith("token.")]
    whole = weights.manifest.compression is None
    trained = any(name.startswith("encoder.") for name in known)
    denoiser, read = _fitting("site", denoiser_parameters(model), weights, complete=whole)
    encoder, more = _fitting("encoder", encoder_parameters(model), weights, complete=whole and trained)
    if len(known) > read + more:
        raise WeightsInvalid("The weights change parameters that this base model does not have.")
    return denoiser, encoder


def _fitting(
    part: Literal["site", "encoder"],
    parameters: Mapping[str, torch.nn.Parameter],
    weights: ConceptWeights,
    *,
    complete: bool,
) -> tuple[dict[str, MatrixChange], int]:
    """Changes by path, and how many tensors they took."""
    modules = weights.site_parts(part)
    fitting: dict[str, MatrixChange] = {}
    read = 0
    for path, parameter in parameters.items():
        key = tensor_key(part, path)
        module, _, leaf = key.removeprefix(f"{part}.").rpartition(".")
        held = modules.get(module, {})
        beside = leaf == "delta" and leaf not in held
        parts = (
            {name: held[name] for name in FACTORS if name in held} if beside else {"delta": held.get(leaf)}
        )
        found = {name: tensor for name, tensor in parts.items() if tensor is not None}
        if not found:
            if complete:
                raise WeightsInvalid(f"The weights lack the change of {path}.")
            continue
        fitting[path] = read_change(path, found, tuple(parameter.shape), None)
        read += len(found)
    return fitting, read
