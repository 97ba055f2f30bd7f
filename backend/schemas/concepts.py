"""Concepts and their photos."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from backend.schemas.strict import Id, Strict

Kind = Literal["subject", "style"]
Token = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
"""A placeholder token without its ``@``: lower case, starts with a letter."""
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]
_ROUNDING = 1e-6
ClassNoun = Annotated[str, StringConstraints(strip_whitespace=True, max_length=60)]


ConsentBasis = Literal["agreed", "self", "guardian"]
"""The person has agreed, is the one who asks, or somebody who may decide for them has agreed."""


class ConsentGiven(Strict):
    """The person on the photos has agreed that the studio is taught how they look."""

    basis: ConsentBasis


class Consent(ConsentGiven):
    """The record of it: who said so, when, and to which version of the sentence."""

    given_by: Id
    version: str
    given_at: datetime


class ConceptCreate(Strict):
    """``POST /concepts``. ``token`` defaults to a slug of the name; ``class_noun`` may be empty for a style only."""

    name: Name
    kind: Kind = "subject"
    class_noun: ClassNoun = ""
    token: Token | None = None
    consent: ConsentGiven | None = Field(
        default=None,
        description="required before a person is trained: class nouns such as woman, child, face",
    )


class ConceptPatch(Strict):
    """``PATCH /concepts/{id}``: only the fields that are present change."""

    name: Name | None = None
    class_noun: ClassNoun | None = None
    token: Token | None = None
    consent: ConsentGiven | None = None


class Photo(Strict):
    """A stored photo: upright, sRGB, without metadata."""

    id: Id
    width: int
    height: int
    url: str
    thumbnail_url: str
    warnings: list[str] = Field(
        default_factory=list,
        description="sentences: small, blurred, very dark, cut off, duplicate of another",
    )


class CropBox(Strict):
    """A part of a picture, in shares of its width and height; ``x`` and ``y`` are its upper left corner."""

    x: Annotated[float, Field(ge=0, lt=1)]
    y: Annotated[float, Field(ge=0, lt=1)]
    width: Annotated[float, Field(gt=0, le=1)]
    height: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _inside(self) -> CropBox:
        if self.x + self.width > 1 + _ROUNDING or self.y + self.height > 1 + _ROUNDING:
            raise ValueError("the box reaches beyond the picture")
        return self

    @property
    def whole(self) -> bool:
        return min(self.width, self.height) > 1 - _ROUNDING


class PhotoPatch(Strict):
    """``PATCH /concepts/{id}/photos/{photo_id}``: turned first, then cropped."""

    rotate: Literal[0, 90, 180, 270] = Field(default=0, description="degrees clockwise")
    crop: CropBox | None = Field(default=None, description="what is kept of the turned picture")


class PhotoReport(Strict):
    """What would be said of a photo if it were added."""

    width: int
    height: int
    warnings: list[str]
    fingerprint: str = Field(
        description="64-bit difference hash, hexadecimal; photos at most 6 bits apart are almost the same"
    )


class PhotoReportList(Strict):
    items: list[PhotoReport]


class PhotoList(Strict):
    items: list[Photo]


class ConceptWeightsSummary(Strict):
    """A version of a concept's weights, as a concept lists it."""

    id: Id
    method: str
    base: str
    job: Id | None = Field(description="null when they were imported")
    concepts: list[Id] = Field(description="every concept that they teach")
    merge: str | None = Field(description="the merge that made them; null when they were trained")
    scale: float = Field(
        description="what a prompt with this concept alone gets that names none (`manifest.scale`)"
    )
    size_bytes: int
    created_at: datetime


class Concept(Strict):
    """``GET /concepts/{id}``. ``weights`` are newest first."""

    id: Id
    name: str
    kind: Kind
    class_noun: str
    token: str
    consent: Consent | None
    picture_url: str | None = Field(
        description="what its gate shows: its first photo, else the newest picture drawn with it"
    )
    photos: list[Photo]
    weights: list[ConceptWeightsSummary]
    created_at: datetime
