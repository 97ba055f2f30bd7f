"""Textual Inversion (Gal et al., ICLR 2023, arXiv 2208.01618; methods.md 1): a word and nothing else.

``v* = argmin_v E || target - f_theta(x_t, t, c(y; v)) ||^2`` (eq. 2, with the base model's own target): y is a
sentence with the placeholder, c the frozen text encoder with v in the placeholder's row. Trained are the
``vectors`` rows of each placeholder, starting from an initial word; every other tensor is frozen. The rate is
``learning_rate * batch_size``, as in the authors' code; neither decay nor clipping.

``per_layer`` is P+ (Voynov et al. 2023, arXiv 2303.09522, section 3.3, XTI): every cross-attention layer l
reads its own encoding ``c(y; v_l)``.

Departures: photos are a bank of encoded views (``training/dataset.py``); a start word of several pieces
spreads over the vectors (`spread`) where the authors insist on one piece; length may be held (``norm``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from backend.schemas.methods.textual_inversion import CARD, TextualInversionParams
from backend.schemas.weights import TaughtToken
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit, TokenRows
from worker.ml.errors import WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.streams import rng
from worker.ml.taught_words import spread, taught_rows, token_tensors
from worker.ml.training.captions import without_noun
from worker.ml.training.lessons import (
    ConceptExamples,
    Lesson,
    check_distinct,
    check_texts,
    deal_lessons,
    prepare_lessons,
)
from worker.ml.training.preview import draw_previews
from worker.ml.training.provenance import check_base, check_served, fingerprint, manifest_of
from worker.ml.training.templates import templates
from worker.ml.training.trainee import Group, Trainee

STYLE_WORD = "painting"


class TextualInversion:
    """The method; it holds no state."""

    name = CARD.name

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: TextualInversionParams,
        *,
        seed: int,
        prior_dir: Path,
        previews: Sequence[str],
        run: Run,
    ) -> Trainee:
        check_served(CARD, model)
        check_distinct(concepts)
        for concept in concepts:  # the word stands for the noun too
            previews = [without_noun(text, concept.token, concept.class_noun) for text in previews]
        edit = TextEdit({c.token: initial_rows(model, c, params, n) for n, c in enumerate(concepts)}, {})
        captions = [
            template.format(f"<{concept.token}>")
            for concept in concepts
            for template in templates(concept.kind, all_of_them=params.templates)
        ]
        check_texts(model, edit, (*captions, *previews), lambda _: params.vectors)
        lessons = prepare_lessons(
            model,
            concepts,
            augment=False,
            flip=params.flip,
            prior_images=0,
            prior_steps=1,
            seed=seed,
            prior_dir=prior_dir,
            run=run,
            unmasked_weight=params.unmasked_weight,
        )
        learned = {f"token.{name}.learned": rows.learned for name, rows in edit.tokens.items()}
        for tensor in learned.values():
            tensor.requires_grad_(True)

        def caption(lesson: Lesson, _prefix: str, place: int) -> str:
            """One of the sentences at random, another for every row of every step."""
            sentences = templates(lesson.concept.kind, all_of_them=params.templates)
            dice = rng(seed, f"template/{lesson.concept.token}", place)
            chosen = int(torch.randint(len(sentences), (), generator=dice))
            return sentences[chosen].format(f"<{lesson.concept.token}>")

        layers = [layer.name for layer in model.cross_attention()] if params.per_layer else []
        tokens = [
            TaughtToken(token=c.token, class_noun="", kind=c.kind, vectors=params.vectors, layers=layers)
            for c in concepts
        ]
        mean = model.mean_row_norm()
        return Trainee(
            unit="train",
            seed=seed,
            steps=params.steps,
            groups=(Group(learned, params.learning_rate * params.batch_size, 0.0),),
            rows=lambda step: deal_lessons(
                lessons, batch_size=params.batch_size, seed=seed, step=step, edit=edit, caption=caption
            ),
            result=lambda steps: ConceptWeights(
                manifest_of(CARD, model, tokens, params, seed=seed, steps=steps), token_tensors(edit.tokens)
            ),
            preview=lambda run: draw_previews(model, previews, edit, seed, run),
            preview_every=params.preview_every,
            fingerprint=fingerprint(self.name, model, concepts, params, seed),
            max_grad_norm=math.inf,
            detach_first=False,
            constrain=lambda: hold_norms(learned.values(), params, mean),
            measures=lambda: {"token_norm": mean_norm(learned.values()) / mean},
        )

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        check_base(model, weights)
        if weights.site_parts():
            raise WeightsInvalid("A word alone changes no site, but these weights do.")
        return TextEdit(taught_rows(model, weights), {})

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> None:
        """Nothing: text side."""

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        """Empty: no site changes."""
        self.edit(model, weights)
        return {}


def initial_rows(
    model: DiffusionModel, concept: ConceptExamples, params: TextualInversionParams, number: int
) -> TokenRows:
    """Rows of the initial word, else of the class noun; a style starts from "painting", a new category
    without a noun from a rare token. [vectors, d], or [layers, vectors, d] all alike; fp32 on the device.

    ``number`` counts the concepts, so that each gets another rare token. Raises `InputInvalid`.
    """
    word = params.initial_word.strip() or concept.class_noun.strip()
    if not word and concept.kind == "style":
        word = STYLE_WORD
    pieces = model.word_rows(word) if word else model.initial_rows(number + 1)[number:]
    start = spread(pieces.float(), params.vectors)
    if params.per_layer:
        start = start.expand(len(model.cross_attention()), -1, -1)
    return TokenRows(start.clone(), start.clone())


@torch.no_grad()
def hold_norms(learned: Iterable[Tensor], params: TextualInversionParams, mean: float) -> None:
    """Scales rows back: to at most ``norm_cap`` times the ``mean`` norm of the vocabulary, or to that norm
    exactly. ``learned``: [..., d] each, changed in place.
    """
    if params.norm == "free":
        return
    for rows in learned:
        norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        wanted = (
            torch.full_like(norms, mean) if params.norm == "mean" else norms.clamp(max=params.norm_cap * mean)
        )
        rows.mul_(wanted / norms.clamp(min=torch.finfo(norms.dtype).tiny))


@torch.no_grad()
def mean_norm(learned: Iterable[Tensor]) -> float:
    """Mean Euclidean length of all rows."""
    return float(torch.cat([torch.linalg.vector_norm(rows, dim=-1).flatten() for rows in learned]).mean())
