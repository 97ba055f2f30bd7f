"""Consent of people whose looks are taught: recorded with the concept, required before a training (reliability 5)."""

from __future__ import annotations

import re

from backend.errors import Invalid
from backend.models import Concept, now
from backend.schemas.concepts import Consent, ConsentBasis

VERSION = "2026-11"
"""Of the sentence: ``The person on these photos has agreed that I teach the studio how they look``."""
PEOPLE = frozenset({
    "actor", "actress", "adult", "aunt", "babies", "baby", "boss", "boy", "boyfriend", "boys", "bride", "brother",
    "celebrity", "child", "children", "colleague", "couple", "cousin", "dad", "daughter", "face", "faces",
    "families", "family", "father", "friend", "friends", "gentleman", "girl", "girlfriend", "girls", "grandchild",
    "granddaughter", "grandfather", "grandma", "grandmother", "grandpa", "grandparent", "grandson", "groom", "guy",
    "human", "humans", "husband", "infant", "kid", "kids", "ladies", "lady", "man", "men", "mom", "mother", "mum",
    "neighbour", "nephew", "newborn", "niece", "parent", "parents", "people", "person", "persons", "politician",
    "singer", "sister", "somebody", "someone", "son", "student", "teacher", "teenager", "toddler", "twins", "uncle",
    "wife", "woman", "women",
})  # fmt: skip
_ADDITION = re.compile(r"\s+(?:of|in|with|on|at|from|who|and)\s+")
REASON = "Teaching how a person looks needs that person's consent."


def shows_person(kind: str, class_noun: str) -> bool:
    """Whether the class noun names a person: by its last word (``old man``, not ``baby elephant``), additions aside."""
    words = re.findall(r"[a-z]+", _ADDITION.split(class_noun.lower().strip())[0])
    return kind == "subject" and bool(words) and words[-1] in PEOPLE


def record(row: Concept, basis: ConsentBasis) -> None:
    """Keep who says on what basis, when, and to which sentence, that the person has agreed."""
    given = Consent(given_by=row.owner_id, basis=basis, version=VERSION, given_at=now())
    row.consent = given.model_dump(mode="json")


def require(row: Concept, pointer: str) -> None:
    """Invalid ``consent-required`` for a concept of a person without a record."""
    if row.consent is None and shows_person(row.kind, row.class_noun):
        raise Invalid.at(
            pointer,
            f"{REASON} Say so with the concept, then train it.",
            code="consent-required",
        )
