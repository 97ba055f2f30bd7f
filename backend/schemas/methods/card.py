"""What forms, API and docs know of a method, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from backend.schemas.strict import Strict

NEEDS: Mapping[str, str] = {
    "text-kv": "a base model whose attention reads the text by keys and values of its own",
}
"""What methods may need of a family of base models, in words (``worker.ml.families.base.Family.has``)."""


@dataclass(frozen=True)
class MethodCard:
    """One row of the table of methods. ``presets`` name the parameters that differ from the defaults; ``needs``
    what a family of base models must have (``worker.ml.families.base.Family``).
    """

    name: str
    title: str
    description: str
    source: str
    min_photos: int
    max_photos: int
    params_type: type[BaseModel]
    presets: Mapping[Any, dict[str, Any]]
    side: Callable[[Any], str]
    needs: frozenset[str] = frozenset()


class MethodInfo(Strict):
    """``GET /methods``."""

    name: str
    title: str
    side: str
    description: str
    source: str
    min_photos: int
    max_photos: int
    params: dict[str, Any]
    presets: dict[str, dict[str, Any]]
