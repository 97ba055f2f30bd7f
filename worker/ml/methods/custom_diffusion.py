"""Custom Diffusion (Kumari et al., CVPR 2023, arXiv 2212.04488; methods.md 4): keys, values and one word.

Trained are the change D of every cross-attention key and value matrix, ``W' = W + D`` with D = 0 at the
start, and the row V* of each placeholder, starting from a rare token's. The objective is the masked noise (or
v) regression on the photos plus lambda times the same on prior images of the class, half of the rows
each; key and value of the start token enter detached.

``train = "crossattn"`` (the authors' code, better for faces with few photos) trains the query and the output projection
of the same layers as well, the output's bias included; their input is the picture, so this is weight side (decision 6).
``word = "class-noun"`` teaches a category that the base model lacks by its plain name: no V*, nothing but matrices.

Departures: AdamW decays D, that is towards the base model, and not W' towards zero; V* is not decayed (the
reference decays the whole embedding table); views of the photos come from a bank (``training/dataset.py``).
Several concepts train jointly (methods.md 5): one set of matrices, a V* each, rows dealt to the concepts in
turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from backend.schemas.methods.custom_diffusion import CARD, CustomDiffusionParams, side
from backend.schemas.weights import TaughtToken, WeightsManifest
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import DenseChange, MatrixChange, TextEdit
from worker.ml.errors import InputInvalid, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit, added
from worker.ml.run import Run
from worker.ml.stored_changes import read_change
from worker.ml.taught_words import rare_rows, taught_rows, token_tensors, wordless
from worker.ml.training.companions import companion_texts
from worker.ml.training.lessons import (
    ConceptExamples,
    Lesson,
    check_distinct,
    check_texts,
    collage_texts,
    deal_lessons,
    noun_caption,
    plain_caption,
    plain_captions,
    prepare_lessons,
)
from worker.ml.training.preview import draw_previews
from worker.ml.training.provenance import check_base, check_served, fingerprint, manifest_of, taught_tokens
from worker.ml.training.trainee import Group, Rows, Trainee


class CustomDiffusion:
    """The method; it holds no state."""

    name = CARD.name

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: CustomDiffusionParams,
        *,
        seed: int,
        prior_dir: Path,
        previews: Sequence[str],
        run: Run,
    ) -> Trainee:
        check_served(CARD, model)
        edit = untrained_edit(model, concepts, new_category=params.new_category)
        captions = plain_captions(concepts, augment=params.augment, new_category=params.new_category)
        vectors = {name: rows.vectors for name, rows in edit.tokens.items()}
        captions += collage_texts(concepts, _share(params, params.collages))
        captions += companion_texts(model, concepts, _share(params, params.companions))
        check_texts(model, edit, (*captions, *previews), vectors.__getitem__)
        lessons = prepare(model, concepts, params, seed=seed, prior_dir=prior_dir, run=run)
        weight_side = side(params) == "weights"
        around = untrained_around(model) if weight_side else {}
        matrices = {f"site.{name}.delta": change.dense() for name, change in edit.sites.items()} | around
        words = {f"token.{name}.learned": rows.learned for name, rows in edit.tokens.items() if rows.vectors}
        for tensor in (*matrices.values(), *words.values()):
            tensor.requires_grad_(True)

        def result(steps: int) -> ConceptWeights:
            learned = {name: tensor.detach().cpu().float().clone() for name, tensor in matrices.items()}
            return ConceptWeights(
                manifest(model, concepts, params, seed, steps), {**learned, **token_tensors(edit.tokens)}
            )

        def alongside() -> AbstractContextManager[None]:
            modules = {site.name: site.module for site in model.sites()}
            return added(
                {
                    modules[name]: (around[f"site.{name}.delta"], around.get(f"site.{name}.bias_delta"))
                    for name in around_names(model)
                }
            )

        return Trainee(
            unit="train",
            seed=seed,
            steps=params.steps,
            groups=(
                Group(matrices, params.learning_rate, params.weight_decay),
                *([Group(words, params.token_learning_rate, 0.0)] if words else []),
            ),
            rows=lambda step: deal_rows(lessons, params, seed, step, edit),
            result=result,
            preview=lambda run: draw_previews(model, previews, edit, seed, run),
            preview_every=params.preview_every,
            fingerprint=fingerprint(self.name, model, concepts, params, seed),
            prior_weight=params.prior_weight,
            unmix_weight=params.unmix_weight,
            max_grad_norm=params.max_grad_norm,
            installed=alongside if weight_side else nullcontext,
        )

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        changes, words = learned_changes(model, weights), taught_rows(model, weights)
        if weights.manifest.side == "weights":
            return TextEdit(words, {})
        moved = {path.removesuffix(".weight"): change for path, change in changes.items()}
        return TextEdit(words, moved, negative=True)

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> WeightEdit | None:
        changes = learned_changes(model, weights)
        if weights.manifest.side == "text":
            return None
        return WeightEdit(changes)

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        changes = learned_changes(model, weights)
        return {
            path.removesuffix(".weight"): change.dense().float()
            for path, change in changes.items()
            if path.endswith(".weight")
        }


def read_names(model: DiffusionModel) -> list[str]:
    """Sites of the key and value matrices."""
    return [site.name for layer in model.cross_attention() for site in (layer.key, layer.value)]


def around_names(model: DiffusionModel) -> list[str]:
    """Sites of the query and output projections of the same layers."""
    return [f"{layer.name}.{part}" for layer in model.cross_attention() for part in ("to_q", "to_out.0")]


def changed_parameters(model: DiffusionModel, *, weight_side: bool) -> dict[str, Tensor]:
    """{path: the base's parameter} of everything that the weights change, biases of Q and out included."""
    names = read_names(model) + (around_names(model) if weight_side else [])
    modules = {site.name: site.module for site in model.sites()}
    return {f"{name}.{leaf}": each for name in names for leaf, each in modules[name].named_parameters()}


def tensor_key(path: str) -> str:
    """ "x.to_q.weight" is ``site.x.to_q.delta``, "x.to_out.0.bias" ``site.x.to_out.0.bias_delta``."""
    name, _, leaf = path.rpartition(".")
    return f"site.{name}.{'delta' if leaf == 'weight' else 'bias_delta'}"


def untrained_around(model: DiffusionModel) -> dict[str, Tensor]:
    """D = 0 for every query and output projection, by its name in the file; fp32 on the device."""
    names = around_names(model)
    return {
        tensor_key(path): torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
        for path, parameter in changed_parameters(model, weight_side=True).items()
        if path.rpartition(".")[0] in names
    }


def learned_changes(model: DiffusionModel, weights: ConceptWeights) -> dict[str, MatrixChange]:
    """{path of a parameter: its change, on the device}; of weights that were made smaller, of those of which something
    was kept. Raises `WeightsInvalid`.
    """
    check_base(model, weights)
    weight_side, smaller = weights.manifest.side == "weights", weights.manifest.compression is not None
    expected = changed_parameters(model, weight_side=weight_side)
    found, changes = weights.site_parts(), dict[str, MatrixChange]()
    matrices = "cross-attention" if weight_side else "key and value"
    misnamed = WeightsInvalid(
        f"The weights do not name the {matrices} matrices of this base model, each once."
    )
    for path, parameter in expected.items():
        name, _, leaf = path.rpartition(".")
        held = found.get(name, {})
        own = [part for part in held if (part == "bias_delta") == (leaf == "bias")]
        parts = {part.removeprefix("bias_"): held.pop(part) for part in own}
        if not smaller and parts.keys() != {"delta"}:
            raise misnamed
        if parts:
            change = read_change(path, parts, tuple(parameter.shape), model.device)
            dense = isinstance(change, DenseChange)
            changes[path] = DenseChange(change.dense().to(model.dtype)) if dense else change
    if any(found.values()) or weights.site_parts("encoder"):
        raise misnamed
    return changes


def untrained_edit(
    model: DiffusionModel, concepts: Sequence[ConceptExamples], *, new_category: bool = False
) -> TextEdit:
    """D = 0 for every key and value matrix, V* = a rare token's row, another one for each concept; fp32 on
    the device. ``new_category``: no V*. Raises `InputInvalid` where the name of the category is then missing.
    """
    check_distinct(concepts)
    if nameless := [concept.token for concept in concepts if new_category and not concept.class_noun]:
        raise InputInvalid(f"The concept {nameless[0]} has no class noun that could be taught.")
    sites = [site for layer in model.cross_attention() for site in (layer.key, layer.value)]
    return TextEdit(
        (wordless if new_category else rare_rows)(model, [concept.token for concept in concepts]),
        {site.name: DenseChange(torch.zeros_like(site.weight, dtype=torch.float32)) for site in sites},
        negative=True,
    )


def prepare(
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    params: CustomDiffusionParams,
    *,
    seed: int,
    prior_dir: Path,
    run: Run,
) -> list[Lesson]:
    """Encodes photos and makes or finds prior images. Raises `InputInvalid`."""
    return prepare_lessons(
        model,
        concepts,
        augment=params.augment,
        flip=params.flip,
        prior=params.prior,
        prior_images=params.prior_images if params.prior_weight > 0 else 0,
        prior_steps=params.prior_steps,
        seed=seed,
        prior_dir=prior_dir,
        run=run,
        new_category=params.new_category,
        companions=_share(params, params.companions),
        unmasked_weight=params.unmasked_weight,
    )


def deal_rows(
    lessons: Sequence[Lesson], params: CustomDiffusionParams, seed: int, step: int, edit: TextEdit
) -> Rows:
    """``batch_size`` photos, dealt to the concepts in turn, and as many prior images of the same concepts."""
    caption = noun_caption if params.new_category else plain_caption
    return deal_lessons(
        lessons,
        batch_size=params.batch_size,
        seed=seed,
        step=step,
        edit=edit,
        caption=caption,
        collages=_share(params, params.collages),
        companions=_share(params, params.companions),
    )


def _share(params: CustomDiffusionParams, wished: float) -> float:
    """Of collages or companions; none where classes are taught by their plain names, which a caption cannot tell from
    the classes of prior images.
    """
    return 0.0 if params.new_category else wished


def manifest(
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    params: CustomDiffusionParams,
    seed: int,
    steps: int,
) -> WeightsManifest:
    """The header of weights that were learned this way, after ``steps`` steps."""
    tokens: Sequence[TaughtToken] = taught_tokens(concepts)
    if params.new_category:
        tokens = [taught.model_copy(update={"vectors": 0}) for taught in tokens]
    return manifest_of(CARD, model, tokens, params, seed=seed, steps=steps)
