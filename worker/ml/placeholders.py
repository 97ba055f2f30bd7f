"""Placeholder tokens in a text, without touching tokenizer or embedding table (methods.md 0.6, 16.2, 16.3).

A placeholder stands in the text as ``<name>``. The text is cut there; the pieces between are encoded by the
base model's own tokenizer; each placeholder becomes one or more *virtual ids* at and above the vocabulary's
size. Their rows are given with the call that encodes, so concepts of several owners with one name live side
by side in one batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from worker.ml.errors import InputInvalid, PromptTooLong

PLACEHOLDER = re.compile(r"<([a-z][a-z0-9_-]{0,39})>")


def placeholders(text: str) -> list[str]:
    """Names of the placeholders of ``text``, in the order in which they first occur."""
    return list(dict.fromkeys(PLACEHOLDER.findall(text)))


def token_ids(tokenizer: Any, text: str, first_ids: Mapping[str, range], limit: int) -> list[int]:
    """``text`` as ``limit`` ids: start, pieces and virtual ids, end, padding.

    ``first_ids`` maps a placeholder's name to its virtual ids. Without placeholders the result is the
    tokenizer's own. Raises `InputInvalid` for a placeholder that nothing teaches, `PromptTooLong` instead of
    cutting.
    """
    ids: list[int] = []
    pieces = PLACEHOLDER.split(text)  # text, name, text, name, ..., text
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            if piece.strip():
                ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
        elif piece in first_ids:
            ids += list(first_ids[piece])
        else:
            raise InputInvalid(f"No chosen weights teach <{piece}>.")
    length = len(ids) + 2
    if length > limit:
        raise PromptTooLong(text, length, limit)
    padding = [tokenizer.pad_token_id] * (limit - length)
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding]
