"""Sample photo sets that ship with the studio."""

from __future__ import annotations

from backend.schemas.concepts import Kind
from backend.schemas.strict import Strict


class SampleSet(Strict):
    """``GET /samples``. ``photos`` are addresses of the pictures."""

    slug: str
    name: str
    kind: Kind
    class_noun: str
    licence: str
    source: str
    featured: bool
    photos: list[str]


class SampleSetList(Strict):
    items: list[SampleSet]
