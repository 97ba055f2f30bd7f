"""Who is there: whether each concept of a picture can be seen in it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.bases import JudgesDescription
from backend.schemas.strict import Id, Strict
from backend.schemas.trainings import PinnedConcept

State = Literal["present", "fused", "missing"]


class Frame(Strict):
    """A part of the picture, in shares of it."""

    x: float
    y: float
    width: float
    height: float


class Presence(Strict):
    """What the judge says of one concept in one picture."""

    concept: Id
    token: str
    state: State = Field(
        description="present: at least as like the photos as half-way between its anchors; fused: not so, but another "
        "concept of the picture is, in its place; missing: neither"
    )
    score: float | None = Field(
        description="0: the base model with the class noun, in the same place; 1: the photos among themselves. "
        "Null where the anchors do not differ"
    )
    box: Frame = Field(description="where it was looked at: its region, or where it is most to be seen")


class PresenceCheck(Strict):
    """Part of a generation's spec: by whom and for what its pictures are looked at. ``plain_text`` is the picture's
    text with class nouns alone; ``regions`` says for each region which of the concepts stand in it.
    """

    judges: JudgesDescription
    concepts: Annotated[list[PinnedConcept], Field(min_length=1)]
    plain_text: str
    regions: list[list[Id]]
    retries: int = Field(ge=0, description="other seeds that are tried until all are there, for each picture")
