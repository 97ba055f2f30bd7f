"""Perfusion (Tewel et al., SIGGRAPH 2023, arXiv 2305.01644; methods.md 10.2): values of one word, keys of its class.

At every key and value matrix W a text state e is read as ``h(e) = W e_perp + sigmoid((sim/n2 - beta)/tau) o*``
(`worker.ml.gates`). Trained are the word's vector and ``o*_V`` of every value matrix, both starting from the
class word. ``o*_K = W_K e_class`` is locked: the key of the class word's state ``e_class``, a constant. The word's key
``i*`` is not trained: ``i* <- m i* + (1 - m) e`` with the word's own state e after every step, from ``e_class`` on; no
gradient goes through it. W is frozen. The word stands *for* its class noun: "a photo of a <token>". The branch for the
negative prompt is not edited.

Stored per concept are ``start``, ``learned``, ``key`` (i*), ``dual`` (C^-1 i*) and ``class_state`` (e_class), and per
value matrix ``target``, [concepts, o]: ``o*_K`` follows from the class state and would double the file.

Departures: photos are masked where asked, without a segmenter (``training/subject_masks.py``); no selection among
checkpoints; photos are a bank of encoded views (``training/dataset.py``); i* and e_class are means over the training
sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from backend.schemas.methods.perfusion import CARD, PerfusionParams, WordGate
from backend.schemas.weights import TaughtToken, WeightsManifest
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit, TokenRows
from worker.ml.errors import InputInvalid, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.gates import GatedChange, gated_change, projection
from worker.ml.methods.base import NotAdditive
from worker.ml.run import Run
from worker.ml.streams import rng
from worker.ml.taught_words import taught_rows, token_tensors
from worker.ml.text_statistics import (
    Covariance,
    caption_corpus,
    corpus_hash,
    placeholder_state,
    text_covariance,
    word_state,
)
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
from worker.ml.training.trainee import Group, Trainee

BEGINNINGS = (
    "a photo of a", "the photo of a", "a photo of the", "a photo of one", "a good photo of a", "a close-up photo of a",
    "a cropped photo of the", "a bright photo of a", "a picture of a",
)  # fmt: skip
STYLE_BEGINNINGS = (
    "a painting in the style of",
    "a picture in the style of",
    "a good painting in the style of",
    "the painting in the style of",
)


STYLE_CLASS = "painting"


@dataclass(frozen=True, eq=False)
class Learned:
    """What one word knows. ``rows`` [1, d_embedding] each; ``key``, ``dual``, ``class_state`` [1, d]; ``targets``
    {value site: [1, o]}; all fp32 on the device. In training ``rows.learned`` and the targets have gradients, key and
    dual follow.
    """

    rows: TokenRows
    key: Tensor
    dual: Tensor
    class_state: Tensor
    targets: Mapping[str, Tensor]


class Perfusion:
    """The method; it holds no state."""

    name = CARD.name

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: PerfusionParams,
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
        corpus = caption_corpus(model)
        covariance = text_covariance(model, corpus, run)
        words = {c.token: untrained(model, c, covariance) for c in concepts}
        sentences = {c.token: [f"{text} <{c.token}>" for text in beginnings(c)] for c in concepts}
        gate = WordGate(bias=params.gate_bias, temperature=params.gate_temperature, locking="local")
        gates = dict.fromkeys(words, gate)
        edit = edit_of(model, words, gates)
        check_texts(model, edit, (*(text for known in sentences.values() for text in known), *previews))
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

        def caption(lesson: Lesson, _prefix: str, place: int) -> str:
            """One of the sentences at random, another for every row of every step."""
            known = sentences[lesson.concept.token]
            dice = rng(seed, f"template/{lesson.concept.token}", place)
            return known[int(torch.randint(len(known), (), generator=dice))]

        for word in words.values():
            for tensor in (word.rows.learned, *word.targets.values()):
                tensor.requires_grad_(True)
        tokens = [TaughtToken(token=c.token, class_noun="", kind=c.kind) for c in concepts]
        return Trainee(
            unit="train",
            seed=seed,
            steps=params.steps,
            groups=(
                Group(
                    {
                        f"target.{token}.{site}": target
                        for token, word in words.items()
                        for site, target in word.targets.items()
                    },
                    params.learning_rate,
                    0.0,
                ),
                Group(
                    {f"learned.{token}": word.rows.learned for token, word in words.items()},
                    params.token_learning_rate,
                    0.0,
                ),
            ),
            rows=lambda step: deal_lessons(
                lessons,
                batch_size=params.batch_size,
                seed=seed,
                step=step,
                edit=edit_of(model, words, gates),
                caption=caption,
            ),
            result=lambda steps: ConceptWeights(
                manifest_of(CARD, model, tokens, params, seed=seed, steps=steps), packed(words)
            ),
            preview=lambda run: draw_previews(
                model, previews, edit_of(model, words, dict.fromkeys(words, drawn_gate(params))), seed, run
            ),
            preview_every=params.preview_every,
            fingerprint=fingerprint(f"{self.name}/{corpus_hash(corpus)}", model, concepts, params, seed),
            max_grad_norm=params.max_grad_norm,
            detach_first=False,
            constrain=lambda: follow(model, words, sentences, covariance, params.key_decay),
            followers={
                f"{part}.{token}": tensor
                for token, word in words.items()
                for part, tensor in (("key", word.key), ("dual", word.dual))
            },
        )

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        return edit_of(model, unpacked(model, weights), word_gates(weights.manifest))

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> None:
        """Nothing: text side."""

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        """Those of the linear gate: the rank-one edit that reads ``i*_j`` as the gated one does, ``(h(i*_j) - W i*_j)
        k_j^T`` with the joint duals. Not additive: the gate is not linear.
        """
        edit = self.edit(model, weights)
        matrices = {site.name: site.weight.double() for site in model.sites()}
        changes = {}
        for name, gated in edit.gated.items():
            keys = gated.keys.double()
            moved = gated_change(keys, matrices[name], [(gated, 1.0)])
            changes[name] = (moved.T @ projection(keys, gated.duals)).float()
        return NotAdditive(changes)


def beginnings(concept: ConceptExamples) -> tuple[str, ...]:
    """What comes before the word in the sentences it is taught with."""
    return STYLE_BEGINNINGS if concept.kind == "style" else BEGINNINGS


def class_word(concept: ConceptExamples) -> str:
    """The super-category: the class noun, "painting" for a style without one. Raises `InputInvalid`."""
    word = concept.class_noun.strip() or (STYLE_CLASS if concept.kind == "style" else "")
    if not word:
        raise InputInvalid(
            f"Perfusion locks the keys of {concept.token} to those of its class noun, and it has none. "
            "Give it one, or choose another method."
        )
    return word


def untrained(model: DiffusionModel, concept: ConceptExamples, covariance: Covariance) -> Learned:
    """The class word under another name: its last piece's vector, its state as key, ``W_V`` of it as targets."""
    word = class_word(concept)
    start = model.word_rows(word)[-1:].float()
    state = word_state(model, beginnings(concept), word)[None]
    values = [layer.value for layer in model.cross_attention()]
    return Learned(
        TokenRows(start.clone(), start.clone()),
        key=state.clone(),
        dual=covariance.solve(state),
        class_state=state,
        targets={site.name: state @ site.weight.float().T for site in values},
    )


@torch.no_grad()
def follow(
    model: DiffusionModel,
    words: Mapping[str, Learned],
    sentences: Mapping[str, Sequence[str]],
    covariance: Covariance,
    decay: float,
) -> None:
    """``i* <- m i* + (1 - m) e`` for every word, e its state as its vector stands, and the dual with it; in place."""
    for token, word in words.items():
        state = placeholder_state(model, sentences[token], token, word.rows.learned)
        word.key.mul_(decay).add_((1.0 - decay) * state)
        word.dual.copy_(covariance.solve(word.key))


def edit_of(model: DiffusionModel, words: Mapping[str, Learned], gates: Mapping[str, WordGate]) -> TextEdit:
    """All words as one edit, each with its own gate; keys locked through the gate where they are locked locally. A word
    of scale 0 has no gate, so that the others do not share their directions with it.
    """
    acting = [token for token in words if gates[token].scale != 0.0]
    local = [token for token in acting if gates[token].locking == "local"]
    gated = {}
    for layer in model.cross_attention():
        if local:
            classes = torch.cat([words[token].class_state for token in local])
            locked = classes @ layer.key.weight.float().T
            gated[layer.key.name] = _gated(
                [words[token] for token in local], locked, [gates[token] for token in local]
            )
        if acting:
            targets = torch.cat([words[token].targets[layer.value.name] for token in acting])
            gated[layer.value.name] = _gated(
                [words[token] for token in acting], targets, [gates[token] for token in acting]
            )
    rows = {token: word.rows for token, word in words.items()}
    everywhere = frozenset(token for token in words if gates[token].locking == "global")
    return TextEdit(rows, {}, negative=False, gated=gated, locked_words=everywhere)


def _gated(words: Sequence[Learned], targets: Tensor, gates: Sequence[WordGate]) -> GatedChange:
    def of_each(part: str) -> Tensor:
        return torch.tensor([getattr(gate, part) for gate in gates], dtype=torch.float64)

    return GatedChange(
        torch.cat([word.key for word in words]),
        torch.cat([word.dual for word in words]),
        targets,
        bias=of_each("bias"),
        temperature=of_each("temperature"),
        scales=of_each("scale"),
    )


def drawn_gate(params: PerfusionParams) -> WordGate:
    """What pictures are drawn with: another gate than in training."""
    return WordGate(bias=params.draw_bias, temperature=params.draw_temperature, locking=params.locking)


def word_gates(manifest: WeightsManifest) -> dict[str, WordGate]:
    """The gate of each word of trained or merged weights. Raises `WeightsInvalid`."""
    names = [taught.token for taught in manifest.tokens]
    try:
        if manifest.merge is None:
            return dict.fromkeys(names, drawn_gate(PerfusionParams.model_validate(manifest.params)))
        return {name: WordGate.model_validate(manifest.params["gates"][name]) for name in names}
    except (ValidationError, KeyError, TypeError):
        raise WeightsInvalid("The parameters of the weights are not Perfusion's.") from None


def packed(words: Mapping[str, Learned]) -> dict[str, Tensor]:
    """Tensors of the weights file, fp32 on the CPU."""
    tensors = token_tensors({token: word.rows for token, word in words.items()})
    for token, word in words.items():
        parts = {"key": word.key, "dual": word.dual, "class_state": word.class_state}
        tensors |= {f"token.{token}.{part}": tensor for part, tensor in parts.items()}
    for site in next(iter(words.values())).targets:
        tensors[f"site.{site}.target"] = torch.cat([word.targets[site] for word in words.values()])
    return {name: tensor.detach().cpu().float().clone() for name, tensor in tensors.items()}


def unpacked(model: DiffusionModel, weights: ConceptWeights) -> dict[str, Learned]:
    """Inverse of `packed`, on the model's device. Raises `WeightsInvalid` where anything does not fit."""
    check_base(model, weights)
    rows = taught_rows(model, weights)
    layers = model.cross_attention()
    wanted = {f"site.{layer.value.name}.target": (len(rows), len(layer.value.weight)) for layer in layers}
    width = layers[0].key.weight.shape[1]
    for token, taught in rows.items():
        if taught.per_layer or taught.vectors != 1:
            raise WeightsInvalid("A word of Perfusion has one vector.")
        wanted |= {f"token.{token}.{part}": (1, width) for part in ("key", "dual", "class_state")}
    own = {f"token.{token}.{part}" for token in rows for part in ("start", "learned")}
    if weights.tensors.keys() != wanted.keys() | own:
        raise WeightsInvalid("The weights do not hold a key and the values of this base model, each once.")
    for name, shape in wanted.items():
        if tuple(weights.tensors[name].shape) != shape:
            raise WeightsInvalid(f"{name} has shape {list(weights.tensors[name].shape)}, not {list(shape)}.")
    held = {name: weights.tensors[name].to(model.device).float() for name in wanted}
    for token in rows:
        if float((held[f"token.{token}.key"] * held[f"token.{token}.dual"]).sum()) <= 0.0:
            raise WeightsInvalid(f"The key of <{token}> and its dual do not go together.")
    return {
        token: Learned(
            taught,
            key=held[f"token.{token}.key"],
            dual=held[f"token.{token}.dual"],
            class_state=held[f"token.{token}.class_state"],
            targets={
                layer.value.name: held[f"site.{layer.value.name}.target"][place : place + 1]
                for layer in layers
            },
        )
        for place, (token, taught) in enumerate(rows.items())
    }
