"""Custom Diffusion (Kumari et al., CVPR 2023, arXiv 2212.04488; methods.md 4): keys, values and one word.

Trained are the change D of every cross-attention key and value matrix, ``W' = W + D`` with D = 0 at the
start, and the row V* of each placeholder, starting from a rare token's. The objective is the masked noise (or
v) regression on the photos plus lambda times the same on generated images of the class, half of the rows
each; key and value of the start token enter detached.

Departures: AdamW decays D, that is towards the base model, and not W' towards zero; V* is not decayed (the
reference decays the whole embedding table); views of the photos come from a bank (``training/dataset.py``).
Several concepts train jointly (methods.md 5): one set of matrices, a V* each, rows dealt to the concepts in
turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from backend.schemas.methods.custom_diffusion import CARD, CustomDiffusionParams
from backend.schemas.weights import WeightsManifest
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import DenseChange, MatrixChange, TextEdit
from worker.ml.errors import WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.stored_changes import read_change
from worker.ml.taught_words import rare_rows, taught_rows
from worker.ml.training.lessons import (
    ConceptExamples,
    Lesson,
    check_distinct,
    check_texts,
    deal_lessons,
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
        edit = untrained_edit(model, concepts)
        check_texts(model, edit, (*plain_captions(concepts, augment=params.augment), *previews))
        lessons = prepare(model, concepts, params, seed=seed, prior_dir=prior_dir, run=run)
        matrices = {f"site.{name}.delta": change.dense() for name, change in edit.sites.items()}
        words = {f"token.{name}.learned": rows.learned for name, rows in edit.tokens.items()}
        for tensor in (*matrices.values(), *words.values()):
            tensor.requires_grad_(True)

        def result(steps: int) -> ConceptWeights:
            starts = {f"token.{name}.start": rows.start for name, rows in edit.tokens.items()}
            tensors = {**matrices, **words, **starts}
            return ConceptWeights(
                manifest(model, concepts, params, seed, steps),
                {name: tensor.detach().cpu().float().clone() for name, tensor in tensors.items()},
            )

        return Trainee(
            unit="train",
            seed=seed,
            steps=params.steps,
            groups=(
                Group(matrices, params.learning_rate, params.weight_decay),
                Group(words, params.token_learning_rate, 0.0),
            ),
            rows=lambda step: deal_rows(lessons, params, seed, step, edit),
            result=result,
            preview=lambda run: draw_previews(model, previews, edit, seed, run),
            preview_every=params.preview_every,
            fingerprint=fingerprint(self.name, model, concepts, params, seed),
            prior_weight=params.prior_weight,
            max_grad_norm=params.max_grad_norm,
        )

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        return TextEdit(taught_rows(model, weights), learned_changes(model, weights), negative=True)

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> None:
        """Nothing: text side."""

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        return {name: change.dense().float() for name, change in learned_changes(model, weights).items()}


def learned_changes(model: DiffusionModel, weights: ConceptWeights) -> dict[str, MatrixChange]:
    """The change of every key and value matrix, on the device; of weights that were made smaller, of those matrices
    of which something was kept. Raises `WeightsInvalid`.
    """
    check_base(model, weights)
    expected = {
        site.name: tuple(site.weight.shape)
        for layer in model.cross_attention()
        for site in (layer.key, layer.value)
    }
    found = weights.site_parts()
    complete = found.keys() == expected.keys() and all(parts.keys() == {"delta"} for parts in found.values())
    smaller = weights.manifest.compression is not None and found.keys() <= expected.keys()
    if not (complete or smaller) or weights.site_parts("encoder"):
        raise WeightsInvalid(
            "The weights do not name the key and value matrices of this base model, each once."
        )
    changes: dict[str, MatrixChange] = {}
    for name, parts in found.items():
        change = read_change(name, parts, expected[name], model.device)
        dense = isinstance(change, DenseChange)
        changes[name] = DenseChange(change.dense().to(model.dtype)) if dense else change
    return changes


def untrained_edit(model: DiffusionModel, concepts: Sequence[ConceptExamples]) -> TextEdit:
    """D = 0 for every key and value matrix, V* = a rare token's row, another one for each concept; fp32 on
    the device.
    """
    check_distinct(concepts)
    sites = [site for layer in model.cross_attention() for site in (layer.key, layer.value)]
    return TextEdit(
        rare_rows(model, [concept.token for concept in concepts]),
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
        prior_images=params.prior_images if params.prior_weight > 0 else 0,
        prior_steps=params.prior_steps,
        seed=seed,
        prior_dir=prior_dir,
        run=run,
    )


def deal_rows(
    lessons: Sequence[Lesson], params: CustomDiffusionParams, seed: int, step: int, edit: TextEdit
) -> Rows:
    """``batch_size`` photos, dealt to the concepts in turn, and as many prior images of the same concepts."""
    return deal_lessons(lessons, batch_size=params.batch_size, seed=seed, step=step, edit=edit)


def manifest(
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    params: CustomDiffusionParams,
    seed: int,
    steps: int,
) -> WeightsManifest:
    """The header of weights that were learned this way, after ``steps`` steps."""
    return manifest_of(CARD, model, taught_tokens(concepts), params, seed=seed, steps=steps)
