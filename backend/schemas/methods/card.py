"""What forms, API and docs know of a method, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, Field

from backend.schemas.bases import SHIPPED, Backbone
from backend.schemas.strict import Strict

NEEDS: Mapping[str, str] = {
    "text-kv": "a base model whose attention reads the text by keys and values of its own",
}
"""What methods may need of a family of base models, in words (``worker.ml.families.base.Family.has``)."""


Presets = Mapping[Any, dict[str, Any]]
"""By name: the parameters that differ from the defaults."""


class Base(Protocol):
    """A base model, as far as presets depend on it."""

    @property
    def backbone(self) -> Backbone: ...


@dataclass(frozen=True)
class MethodCard:
    """One row of the table of methods. ``presets``: for every backbone the same names; ``needs``: what a family of
    base models must have (``worker.ml.families.base.Family``); ``small_already``: why weights of the method cannot be
    made smaller, a sentence; empty where they can.
    """

    name: str
    title: str
    description: str
    source: str
    min_photos: int
    max_photos: int
    params_type: type[BaseModel]
    presets: Mapping[Backbone, Presets]
    side: Callable[[Any], str]
    needs: frozenset[str] = frozenset()
    small_already: str = ""

    def presets_for(self, base: Base | None) -> Presets:
        """The presets that fit the base model; while none is known those of the one that ships."""
        return self.presets[base.backbone if base else SHIPPED]


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
    presets: dict[str, dict[str, Any]] = Field(description="those of the backbone `small`")
    presets_by_backbone: dict[Backbone, dict[str, dict[str, Any]]] = Field(
        description="what each preset changes of the defaults, by the `backbone` that `GET /bases` names"
    )
