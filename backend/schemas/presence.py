"""Who is there: whether each concept of a picture can be seen in it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.bases import JudgesDescription
from backend.schemas.strict import Id, Strict
from backend.schemas.trainings import PinnedConcept

State = Literal["present", "fused", "missing", "unknown"]


class Frame(Strict):
    """A part of the picture, in shares of it."""

    x: float
    y: float
    width: float
    height: float


class WordAttention(Strict):
    """Where the word of a concept acts in a picture, by cross-attention maps: evidence beside the judge's verdict."""

    share: float = Field(description="of the attention of a place, where the word has most; 0 to 1")
    box: Frame = Field(description="the smallest box with 60 % of the word's map")
    same_place: list[str] = Field(
        description="tokens of other concepts whose words act in the same place: their boxes have half of what they "
        "cover in common"
    )


class Presence(Strict):
    """What the judge says of one concept in one picture, and where its word acts."""

    concept: Id
    token: str
    state: State = Field(
        description="present: at least as like the photos as half-way between its anchors, in a place of its own; "
        "fused: another concept of the picture is so in its place, and more than it; missing: neither; "
        "unknown: it cannot be told, because the photos are no more like each other than the base model's picture is"
    )
    score: float | None = Field(
        description="0: the base model with the class noun, in the same place; 1: the photos among themselves. "
        "Null where it is unknown"
    )
    box: Frame = Field(description="where it was looked at: its region, or where it is most to be seen")
    attention: WordAttention | None = Field(
        default=None,
        description="null in a picture with regions, and where the concept's word is not in the prompt",
    )


class PresenceCheck(Strict):
    """Part of a generation's spec: by whom and for what its pictures are looked at. ``plain_text`` is the picture's
    text with class nouns alone; ``regions`` says for each region which of the concepts stand in it.
    """

    judges: JudgesDescription
    concepts: Annotated[list[PinnedConcept], Field(min_length=1)]
    plain_text: str
    regions: list[list[Id]]
    retries: int = Field(
        ge=0, description="other seeds that are tried until nobody is missing or fused, for each picture"
    )
    guidance_of_missing: float = Field(
        default=0.0,
        description="attention guidance, in tries after a failed one, to concepts that were missing or fused; 0: off",
    )
