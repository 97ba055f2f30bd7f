"""What text states look like on average: their covariance over a caption corpus, and the states of single words.

``C`` is the uncentred second moment of text states at words and end-of-text of every caption, not at start-of-text (an
outlier that is the same in every prompt) and not at padding, divided by the number of captions (methods.md 10.2). Its
scale cancels wherever it is used. In float64 with a relative ridge of 1e-6, solved by Cholesky; never inverted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from worker.ml.errors import InputInvalid, PromptTooLong
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.training.captions import class_prompts
from worker.ml.training.templates import OBJECT_TEMPLATES

RIDGE = 1e-6
MOST_CAPTIONS = 1000
ENCODED_AT_ONCE = 50
COMMON_NOUNS = (
    "person", "man", "woman", "child", "face", "hand", "dog", "cat", "bird", "horse", "fish", "bear", "tree", "flower",
    "mountain", "river", "beach", "forest", "city", "street", "house", "room", "kitchen", "window", "door", "table",
    "chair", "bed", "book", "lamp", "cup", "bottle", "bag", "hat", "shirt", "shoe", "toy", "car", "bus", "train",
    "boat", "bicycle", "bridge", "tower", "sky", "cloud", "snow", "fire", "water", "night", "cake", "fruit", "picture",
)  # fmt: skip
"""Nouns of a corpus for base models that bring none and name no classes of their own."""


@dataclass(frozen=True, eq=False)
class Covariance:
    """``C`` [d, d], float64 on the CPU, ridge included."""

    matrix: Tensor

    @cached_property
    def factor(self) -> Tensor:
        """The lower Cholesky factor."""
        factor: Tensor = torch.linalg.cholesky(self.matrix)
        return factor

    def solve(self, keys: Tensor) -> Tensor:
        """``C^-1 i`` of every row of ``keys`` [n, d], in the dtype and on the device of ``keys``."""
        solved: Tensor = torch.cholesky_solve(keys.double().cpu().T, self.factor).T
        return solved.to(keys)

    @staticmethod
    def of(states: Tensor, captions: int) -> Covariance:
        """From the states of all words of ``captions`` captions, [m, d]."""
        rows = states.double().cpu()
        matrix = rows.T @ rows / captions
        ridge = RIDGE * matrix.diagonal().mean()
        return Covariance(matrix + ridge * torch.eye(len(matrix), dtype=torch.float64))


def caption_corpus(model: DiffusionModel, most: int = MOST_CAPTIONS) -> tuple[str, ...]:
    """At most ``most``: those of the base's ``captions.txt``; without one, the class prompts and sentences of
    its class nouns, or of `COMMON_NOUNS` where it names none, evenly chosen.
    """
    if model.captions:
        return model.captions[:most]
    description = model.description
    nouns = description.class_nouns or COMMON_NOUNS
    made = [
        text
        for noun in nouns
        for text in (
            *class_prompts(noun, "subject", description.example_prompts),
            *(template.format(noun) for template in OBJECT_TEMPLATES),
        )
    ]
    return tuple(made[:: -(-len(made) // most)])


def corpus_hash(captions: Sequence[str]) -> str:
    """sha256 of the corpus, hexadecimal: what is learned with it depends on it."""
    return hashlib.sha256("\n".join(captions).encode()).hexdigest()


@torch.no_grad()
def text_covariance(model: DiffusionModel, captions: Sequence[str], run: Run) -> Covariance:
    """Encodes ``captions``. Those too long for the encoder are left out, with a note; so is said where the base model
    brought no captions of its own. ``run.step("captions", ...)`` after each batch. Raises what it raises,
    `InputInvalid` where nothing is left.
    """
    if not model.captions:
        run.note(
            "no_captions",
            f"{model.description.title} brings no captions.txt: which words are alike was learnt from sentences of "
            "its class nouns.",
        )
    ids: list[list[int]] = []
    for text in captions:
        try:
            ids.append(model.token_ids(text, {}))
        except PromptTooLong:
            continue
    if len(ids) < len(captions):
        left = len(captions) - len(ids)
        run.note("captions_too_long", f"{left} captions are too long for the text encoder and were left out.")
    if not ids:
        raise InputInvalid("No caption of the corpus fits the text encoder.")
    end = model.token_ids("", {})[1]
    kept = []
    for first in range(0, len(ids), ENCODED_AT_ONCE):
        chunk = torch.tensor(ids[first : first + ENCODED_AT_ONCE])
        states = model.encode_prompts(chunk, None).states
        places = torch.arange(chunk.shape[1])
        words = (places >= 1) & (places <= (chunk == end).long().argmax(dim=1)[:, None])
        kept.append(states[words.to(states.device)].cpu())
        run.step("captions", min(first + ENCODED_AT_ONCE, len(ids)), len(ids))
    return Covariance.of(torch.cat(kept), len(ids))


@torch.no_grad()
def placeholder_state(model: DiffusionModel, texts: Sequence[str], name: str, row: Tensor) -> Tensor:
    """Mean state [d], fp32, of the placeholder ``name`` with the vector ``row`` [1, d_embedding] in ``texts``, each of
    which holds it.
    """
    first = model.vocabulary_size
    ids = torch.tensor([model.token_ids(text, {name: range(first, first + 1)}) for text in texts])
    states = model.encode_prompts(ids, row).states
    places = (ids == first).long().argmax(dim=1)
    return states[torch.arange(len(texts)), places].float().mean(dim=0)


@torch.no_grad()
def word_state(model: DiffusionModel, beginnings: Sequence[str], word: str) -> Tensor:
    """Mean state [d], fp32, of the last token of ``word`` behind each of ``beginnings`` ("a photo of a"). The encoder
    reads from left to right, so what follows does not matter. Raises `PromptTooLong`.
    """
    ids = torch.tensor([model.token_ids(f"{beginning} {word}", {}) for beginning in beginnings])
    end = model.token_ids("", {})[1]
    places = (ids == end).long().argmax(dim=1) - 1
    states = model.encode_prompts(ids, None).states
    return states[torch.arange(len(ids)), places].float().mean(dim=0)
