"""The rank-one edit of the value matrices in closed form (Bau et al. 2020, arXiv 2007.15646; Meng et al. 2022,
arXiv 2202.05262, eq. 2; methods.md 10.1), from one averaged target and without training.

``W_hat = W + Lam (C^-1 i*)^T``, ``Lam = (o* - W i*) / (i*^T C^-1 i*)``: of all matrices with ``W_hat i* = o*`` the one
whose change is smallest over the text states of a caption corpus, ``min ||(W_hat - W) C^1/2||_F``. Several concepts:
the same with as many constraints, ``D = R (I C^-1 I^T)^-1 I C^-1`` (methods.md 6 with G = C).

``i*`` is the mean state of the word (a rare token's row, never changed) in short sentences. The target ``o*`` moves
``W i*`` against the mean gradient of the base model's own loss over ``steps`` batches of photos, all taken at the base
model itself: one steepest descent, ``o* = W i* - eta gbar``, in all value matrices together. ``eta`` is the best of
`STRENGTHS` on the first batches, in lengths of ``W i*``. Keys stay: where the word is read does not change.

So a "step" is one batch of the average. The loop sees tensors with learning rate zero, whose gradients are summed
beside them; finish early, checkpoint and resume are the loop's (ADR 7).

Departure: Meng et al. find o* by many descents from one fact; the mean of one gradient is the training-free part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from backend.schemas.methods.rank_one import CARD, RankOneParams
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit, TokenRows
from worker.ml.errors import WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.gates import projection
from worker.ml.low_rank import LowRankChange
from worker.ml.run import Run
from worker.ml.taught_words import rare_rows, taught_rows, token_tensors
from worker.ml.text_statistics import caption_corpus, corpus_hash, placeholder_state, text_covariance
from worker.ml.training.lessons import (
    ConceptExamples,
    check_distinct,
    check_texts,
    deal_lessons,
    plain_captions,
    prepare_lessons,
)
from worker.ml.training.preview import draw_previews
from worker.ml.training.provenance import check_base, check_served, fingerprint, manifest_of, taught_tokens
from worker.ml.training.trainee import Group, Trainee

SENTENCES = ("a photo of a <{}>", "a photo of the <{}>", "photo of a <{}>", "a <{}>", "a photo of one <{}>")


class RankOne:
    """The method; it holds no state."""

    name = CARD.name

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: RankOneParams,
        *,
        seed: int,
        prior_dir: Path,
        previews: Sequence[str],
        run: Run,
    ) -> Trainee:
        check_served(CARD, model)
        check_distinct(concepts)
        words = rare_rows(model, [concept.token for concept in concepts])
        check_texts(model, TextEdit(words, {}), (*plain_captions(concepts, augment=False), *previews))
        corpus = caption_corpus(model)
        covariance = text_covariance(model, corpus, run)
        keys = torch.stack([word_key(model, token, rows) for token, rows in words.items()])
        duals = projection(keys, covariance.solve(keys)).to(keys)
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
        values = {layer.value.name: layer.value.weight.float() for layer in model.cross_attention()}
        probes = {
            name: torch.zeros(len(keys), len(weight), device=weight.device, requires_grad=True)
            for name, weight in values.items()
        }
        sums = {name: torch.zeros_like(probe) for name, probe in probes.items()}

        edit = edit_of(words, duals, probes)

        def changes() -> dict[str, Tensor]:
            """Against the mean gradient so far."""
            outputs = {name: keys @ weight.T for name, weight in values.items()}
            return target_changes(sums, outputs, params.strength)

        def add_gradients() -> None:
            for name, probe in probes.items():
                if probe.grad is not None:
                    sums[name].add_(probe.grad)

        def result(steps: int) -> ConceptWeights:
            tensors = token_tensors(words)
            for place, token in enumerate(words):
                tensors[f"token.{token}.key"] = keys[place : place + 1].cpu().clone()
                tensors[f"token.{token}.dual"] = duals[place : place + 1].cpu().clone()
            tensors |= {f"site.{name}.change": change.cpu().clone() for name, change in changes().items()}
            tokens = taught_tokens(concepts)
            return ConceptWeights(manifest_of(CARD, model, tokens, params, seed=seed, steps=steps), tensors)

        return Trainee(
            unit="train",
            seed=seed,
            steps=params.steps,
            groups=(Group({f"probe.{name}": probe for name, probe in probes.items()}, 0.0, 0.0),),
            rows=lambda step: deal_lessons(
                lessons, batch_size=params.batch_size, seed=seed, step=step, edit=edit
            ),
            result=result,
            preview=lambda run: draw_previews(model, previews, edit_of(words, duals, changes()), seed, run),
            preview_every=params.preview_every,
            fingerprint=fingerprint(f"{self.name}/{corpus_hash(corpus)}", model, concepts, params, seed),
            max_grad_norm=float("inf"),
            detach_first=False,
            constrain=add_gradients,
            followers={f"sum.{name}": total for name, total in sums.items()},
        )

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        words, duals, changes = unpacked(model, weights)
        return edit_of(words, duals, changes)

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> None:
        """Nothing: text side."""

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        _, duals, changes = unpacked(model, weights)
        return {name: change.T @ duals for name, change in changes.items()}


def word_key(model: DiffusionModel, token: str, rows: TokenRows) -> Tensor:
    """``i*`` [d]: the mean state of the word in `SENTENCES`."""
    return placeholder_state(model, [each.format(token) for each in SENTENCES], token, rows.start)


def edit_of(words: Mapping[str, TokenRows], duals: Tensor, changes: Mapping[str, Tensor]) -> TextEdit:
    """``dW = (o* - W i*) u^T``: ``duals`` u [n, d] with ``u_j . i*_k = 1`` where j = k, else 0; ``changes`` [n, o]."""
    return TextEdit(words, {name: LowRankChange(duals, change.T, 1.0) for name, change in changes.items()})


@torch.no_grad()
def target_changes(
    sums: Mapping[str, Tensor], outputs: Mapping[str, Tensor], strength: float
) -> dict[str, Tensor]:
    """``o* - W i*`` [n, o] a site from the summed gradients and ``W i*``, [n, o] each: downhill, for each concept over
    all sites together ``strength`` times as long as ``W i*``. Zero where there is no gradient yet.
    """
    length = torch.stack([each.square().sum(dim=1) for each in outputs.values()]).sum(dim=0).sqrt()
    norm = torch.stack([each.square().sum(dim=1) for each in sums.values()]).sum(dim=0).sqrt()
    factor = torch.where(norm > 0, strength * length / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
    return {name: -factor[:, None] * each for name, each in sums.items()}


def unpacked(
    model: DiffusionModel, weights: ConceptWeights
) -> tuple[dict[str, TokenRows], Tensor, dict[str, Tensor]]:
    """Words, duals [n, d] and changes [n, o] by value site, fp32 on the device. Raises `WeightsInvalid`."""
    check_base(model, weights)
    words = taught_rows(model, weights)
    layers = model.cross_attention()
    width = layers[0].value.weight.shape[1]
    wanted = {f"site.{layer.value.name}.change": (len(words), len(layer.value.weight)) for layer in layers}
    wanted |= {f"token.{token}.{part}": (1, width) for token in words for part in ("key", "dual")}
    own = {f"token.{token}.{part}" for token in words for part in ("start", "learned")}
    if weights.tensors.keys() != wanted.keys() | own:
        raise WeightsInvalid("The weights do not name the value matrices of this base model, each once.")
    for name, shape in wanted.items():
        if tuple(weights.tensors[name].shape) != shape:
            raise WeightsInvalid(f"{name} has shape {list(weights.tensors[name].shape)}, not {list(shape)}.")
    duals = torch.cat([weights.tensors[f"token.{token}.dual"] for token in words])
    changes = {
        layer.value.name: weights.tensors[f"site.{layer.value.name}.change"].to(model.device).float()
        for layer in layers
    }
    return words, duals.to(model.device).float(), changes
