"""JSON from strangers: every key once, and no numbers that JSON does not have."""

from __future__ import annotations

import json
from typing import Any


def parsed(text: str) -> Any:
    """Raises ValueError and RecursionError."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(_name: str) -> Any:
    raise ValueError("NaN and Infinity are not JSON")
