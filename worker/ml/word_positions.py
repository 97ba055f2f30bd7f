"""Where the words of concepts stand among the tokens that the text encoder reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backend.schemas.weights import TaughtToken
from worker.ml.conditioning import Prompt
from worker.ml.placeholders import PLACEHOLDER

if TYPE_CHECKING:
    from worker.ml.families.base import DiffusionModel

Word = tuple[int, ...]
"""Positions in the encoder's text, 0 being the start token."""


def subject_words(model: DiffusionModel, prompt: Prompt, taught: Sequence[TaughtToken]) -> dict[str, Word]:
    """{token: positions of its placeholder and of the class noun behind it, at every place of the text}, for the
    subjects that the text names; a style is nowhere to be seen by itself.

    Raises `InputInvalid` for a placeholder that no edit teaches, and `PromptTooLong`.
    """
    found: dict[str, Word] = {}
    for each in taught:
        if each.kind == "subject" and (word := _positions(model, prompt, each)):
            found[each.token] = word
    return found


def _positions(model: DiffusionModel, prompt: Prompt, taught: TaughtToken) -> Word:
    at: list[int] = []
    for match in PLACEHOLDER.finditer(prompt.text):
        if match[1] == taught.token:
            behind = re.compile(rf"\s+{re.escape(taught.class_noun)}(?!\w)", re.IGNORECASE)
            noun = behind.match(prompt.text, match.end()) if taught.class_noun else None
            end = noun.end() if noun else match.end()
            at += range(tokens_before(model, prompt, match.start()), tokens_before(model, prompt, end))
    return tuple(at)


def tokens_before(model: DiffusionModel, prompt: Prompt, end: int) -> int:
    """How many tokens a prompt's text has before character ``end``, the start token among them."""
    first = model.vocabulary_size
    vectors = {name: rows.vectors for edit, _ in prompt.edits for name, rows in edit.tokens.items()}
    virtual = {name: range(first, first + count) for name, count in vectors.items()}
    end_of_text = model.token_ids("", {})[1]
    return model.token_ids(prompt.text[:end], virtual).index(end_of_text)
