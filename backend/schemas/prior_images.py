"""How many pictures the base model draws for a training before it begins: the worker draws them, a forecast counts."""

from __future__ import annotations

from collections.abc import Sequence

CHUNK = 4
"""Pictures of one text, drawn at once; sets of them are whole chunks."""
COMPANIONS = 8
"""Other things that a subject is shown beside, at most."""


def whole_chunks(count: int) -> int:
    """``count`` pictures, rounded up."""
    return -(-count // CHUNK) * CHUNK


def other_things(kind: str, class_noun: str, nouns: Sequence[str]) -> list[str]:
    """What a subject of the class is shown beside (`worker.ml.training.companions`), spread over ``nouns``, those that
    the base model draws well; empty for a style, and where there is no class noun or no other thing.
    """
    others = [other for other in nouns if other.lower() != class_noun.lower()]
    if kind == "style" or not class_noun:
        return []
    return others[:: max(1, len(others) // COMPANIONS)][:COMPANIONS]
