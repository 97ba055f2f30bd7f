"""Concepts and their photos."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from backend.schemas.strict import Id, Strict

Kind = Literal["subject", "style"]
Token = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
"""A placeholder token without its ``@``: lower case, starts with a letter."""
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]
ClassNoun = Annotated[str, StringConstraints(strip_whitespace=True, max_length=60)]


class ConceptCreate(Strict):
    """``POST /concepts``. ``token`` defaults to a slug of the name; ``class_noun`` may be empty for a style only."""

    name: Name
    kind: Kind = "subject"
    class_noun: ClassNoun = ""
    token: Token | None = None


class ConceptPatch(Strict):
    """``PATCH /concepts/{id}``: only the fields that are present change."""

    name: Name | None = None
    class_noun: ClassNoun | None = None
    token: Token | None = None


class Photo(Strict):
    """A stored photo: upright, sRGB, without metadata."""

    id: Id
    width: int
    height: int
    url: str
    thumbnail_url: str
    warnings: list[str] = Field(
        default_factory=list, description="sentences: blurred, duplicate of another, small"
    )


class PhotoList(Strict):
    items: list[Photo]


class ConceptWeightsSummary(Strict):
    """A version of a concept's weights, as a concept lists it."""

    id: Id
    method: str
    base: str
    job: Id
    size_bytes: int
    created_at: datetime


class Concept(Strict):
    """``GET /concepts/{id}``. ``weights`` are newest first."""

    id: Id
    name: str
    kind: Kind
    class_noun: str
    token: str
    photos: list[Photo]
    weights: list[ConceptWeightsSummary]
    created_at: datetime
