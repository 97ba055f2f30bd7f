"""SVDiff (Han et al., ICCV 2023, arXiv 2303.11305; methods.md 9), trained as DreamBooth is (section 3.2, methods.md 2).

``W' = U diag(relu(sigma + delta)) V^T``: of every weight of the denoiser the singular vectors stay, and one number for
each singular value is learnt, from 0. Convolutions count as [out, in kh kw]; gains of norms get a shift for every
element. ``delta`` is what is trained and what is stored; the vectors are those of the base, kept beside it
(`worker.ml.spectra`). V* is a rare token's row and is not learnt.

Keys and values of the cross-attention alone are text side: a `TextEdit`. Everything else is weight side, installed
dense when used (`worker.ml.spectral_shifts`).

Departures: no weight decay. The scale of a concept multiplies the change of a weight, not delta: the same wherever no
singular value reaches zero. Tables of words and positions of the text encoder are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from backend.schemas.methods.svdiff import CARD, SVDiffParams, side
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.errors import MethodUnsupported, WeightsInvalid
from worker.ml.families.base import DiffusionModel, encoder_modules
from worker.ml.installation import WeightEdit
from worker.ml.module_changes import Modules, Part, not_usable, read_changes, weight_edit
from worker.ml.run import Run
from worker.ml.spectra import Spectra
from worker.ml.spectral_shifts import GainChange, SpectralChange, checksum, in_place
from worker.ml.taught_words import rare_rows, taught_rows
from worker.ml.training.dreambooth_recipe import Recipe
from worker.ml.training.lessons import ConceptExamples
from worker.ml.training.trainee import Group, Trainee

Change = SpectralChange | GainChange
CHECKSUM_TOLERANCE = 1e-4
"""Relative; far above the rounding of single precision, far below the change of any other weight."""


class SVDiff:
    """The method; it holds no state."""

    name = CARD.name

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: SVDiffParams,
        *,
        seed: int,
        prior_dir: Path,
        previews: Sequence[str],
        run: Run,
    ) -> Trainee:
        recipe = Recipe(CARD, model, concepts, params, seed, previews)
        recipe.check()
        check_precision(model)
        words = rare_rows(model, [concept.token for concept in concepts])
        lessons = recipe.lessons(TextEdit(words, {}), prior_dir, run)
        modules = chosen_modules(model, params)
        deltas = {
            key: torch.zeros(shifts_of(module), device=model.device, requires_grad=True)
            for key, module in modules.items()
        }
        changes = changes_of(model, modules, deltas, run)
        text_side = side(params) == "text"
        sites = {key.removeprefix("site."): change for key, change in changes.items()} if text_side else {}

        def group(part: str, gains: bool, rate: float) -> Group:
            chosen = {
                f"{key}.shift": delta
                for key, delta in deltas.items()
                if key.startswith(part) and isinstance(changes[key], GainChange) == gains
            }
            return Group(chosen, rate, 0.0)

        groups = (
            group("site.", False, params.learning_rate),
            group("encoder.", False, params.text_learning_rate),
            group("", True, params.gain_learning_rate),
        )

        def learned() -> dict[str, Tensor]:
            shifts = {f"{key}.shift": delta.detach().cpu().clone() for key, delta in deltas.items()}
            return {**shifts, **{f"{key}.checksum": checksum(shifted_of(c)) for key, c in changes.items()}}

        def shifted_in_place() -> AbstractContextManager[None]:
            return in_place({modules[key]: change for key, change in changes.items()})

        return recipe.trainee(
            TextEdit(words, sites), lessons, groups, learned, nullcontext if text_side else shifted_in_place
        )

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        words = taught_rows(model, weights)
        if weights.manifest.side == "text":
            return TextEdit(words, learned_changes(model, weights)["site"])
        learned_shifts(model, weights)
        return TextEdit(words, {})

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> WeightEdit | None:
        if weights.manifest.side == "text":
            learned_shifts(model, weights)
            return None
        return weight_edit(changeable(model), learned_changes(model, weights))

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        changes = learned_changes(model, weights)["site"]
        return {name: c.dense() for name, c in changes.items() if isinstance(c, SpectralChange)}


def check_precision(model: DiffusionModel) -> None:
    """Raises `MethodUnsupported`: rounded to half precision, weights have other singular vectors."""
    if model.dtype.itemsize < torch.float32.itemsize:
        raise MethodUnsupported(f"{CARD.title} works in single precision; this base model is loaded in half.")


def changeable(model: DiffusionModel) -> dict[Part, Modules]:
    """Every module that can be shifted: Linear, Conv and norms of the denoiser; Linear and norms of the encoder."""
    sites = {site.name: (site.name, site.module) for site in model.sites()}
    norms = {path: (path, module) for path, module in gains(model.denoiser).items()}
    encoder_norms = {
        path.removeprefix("text_model."): (path, module) for path, module in gains(model.text_encoder).items()
    }
    return {"site": sites | norms, "encoder": encoder_modules(model) | encoder_norms}


def gains(network: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """{path: module} of the norms that have a gain: modules with a vector called weight."""
    return {
        path: module
        for path, module in network.named_modules()
        if (weight := module._parameters.get("weight")) is not None and weight.ndim == 1
    }


def chosen_modules(model: DiffusionModel, params: SVDiffParams) -> dict[str, torch.nn.Module]:
    """{"site.<name>" or "encoder.<name>": module} of the layers that are shifted."""
    sites = {site.name: site for site in model.sites()}
    parts = changeable(model)
    named = {
        "all": parts["site"].keys(),
        "linear": {name for name, site in sites.items() if isinstance(site.module, torch.nn.Linear)},
        "cross": {name for name, site in sites.items() if site.group == "cross-attention"},
        "key-value": {site.name for layer in model.cross_attention() for site in (layer.key, layer.value)},
    }[params.layers]
    found = {f"site.{name}": module for name, (_, module) in parts["site"].items() if name in named}
    if params.text_encoder:
        found |= {f"encoder.{name}": module for name, (_, module) in parts["encoder"].items()}
    return found


def shifts_of(module: torch.nn.Module) -> int:
    """How many singular values the weight has: min(out, in kh kw), or the elements of a gain."""
    weight = module.get_parameter("weight")
    return len(weight) if weight.ndim == 1 else min(weight.flatten(1).shape)


def changes_of(
    model: DiffusionModel,
    modules: Mapping[str, torch.nn.Module],
    deltas: Mapping[str, Tensor],
    run: Run | None = None,
) -> dict[str, Change]:
    """The change of each module; decompositions are made where they are missing."""
    weights = {key: module.get_parameter("weight").detach() for key, module in modules.items()}
    matrices = {key: weight for key, weight in weights.items() if weight.ndim > 1}
    spectra = Spectra(model).of(matrices, run)
    return {
        key: SpectralChange(spectra[key], deltas[key], tuple(weight.shape))
        if key in spectra
        else GainChange(weight.float(), deltas[key])
        for key, weight in weights.items()
    }


def shifted_of(change: Change) -> Tensor:
    """The singular values, or gains, that the shifts belong to."""
    return change.gain if isinstance(change, GainChange) else change.spectrum.values


def learned_shifts(model: DiffusionModel, weights: ConceptWeights) -> dict[Part, dict[str, Tensor]]:
    """delta of each module, fp32 on the device, of the right length. Raises `WeightsInvalid`, `MethodUnsupported`."""
    check_precision(model)
    return read_changes(model, weights, changeable(model), learned_shift)


def learned_shift(key: str, module: torch.nn.Module, parts: Mapping[str, Tensor]) -> Tensor:
    """The shifts of one module from its tensors in the file. Raises `WeightsInvalid`."""
    name = key.partition(".")[2]
    if parts.keys() != {"shift", "checksum"} or parts["checksum"].ndim:
        raise not_usable(name)
    if tuple(parts["shift"].shape) != (shifts_of(module),):
        raise WeightsInvalid(
            f"The shifts of {name} have shape {list(parts['shift'].shape)}, not [{shifts_of(module)}]."
        )
    return parts["shift"].to(module.get_parameter("weight").device).float()


def learned_changes(model: DiffusionModel, weights: ConceptWeights) -> dict[Part, dict[str, Change]]:
    """The changes that the shifts make, with the singular values they were learned for. Raises `WeightsInvalid`,
    `MethodUnsupported`.
    """
    shifts, known = learned_shifts(model, weights), changeable(model)
    deltas = {f"{part}.{name}": delta for part, named in shifts.items() for name, delta in named.items()}
    modules = {f"{part}.{name}": known[part][name][1] for part, named in shifts.items() for name in named}
    changes = changes_of(model, modules, deltas)
    for key, change in changes.items():
        expected, found = weights.tensors[f"{key}.checksum"].float(), checksum(shifted_of(change))
        if (expected - found).abs() > CHECKSUM_TOLERANCE * found.abs():
            raise WeightsInvalid(
                f"The singular values of {key.partition('.')[2]} are not those that the shifts were learned for."
            )
    return {part: {name: changes[f"{part}.{name}"] for name in named} for part, named in shifts.items()}
