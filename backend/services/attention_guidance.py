"""Whether a picture has somebody to whom its attention could be guided, and those to whom it shall be."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import Concept
from backend.schemas.generations import GenerationCreate

WITH_BOXES = "Attention is not guided in a picture with boxes: they say already where concepts stand."


def require_someone(session: Session, owner_id: str, body: GenerationCreate, names: Sequence[str]) -> None:
    """Invalid where attention shall be guided and there are boxes, or no subject among the tokens ``names``: a style is
    nowhere to be seen by itself; and where it shall be guided to a concept that is none of these subjects.
    """
    if not body.attention_guidance:
        if body.attention_concepts:
            raise Invalid.at(
                "/attention_concepts", "Attention is not guided at all: set `attention_guidance`."
            )
        return
    if body.regions:
        raise Invalid.at(
            "/attention_guidance",
            WITH_BOXES,
            code="attention-with-boxes",
        )
    subjects = select(Concept.id).where(
        Concept.owner_id == owner_id,
        Concept.token.in_(names),
        Concept.deleted_at.is_(None),
        Concept.kind == "subject",
    )
    known = set(session.scalars(subjects))
    if not known:
        raise Invalid.at(
            "/attention_guidance",
            "The prompt names no subject that attention could be guided to.",
            code="nobody-to-attend",
        )
    for place, concept in enumerate(body.attention_concepts):
        if concept not in known:
            raise Invalid.at(
                f"/attention_concepts/{place}",
                "The prompt does not name this subject, so attention cannot be guided to it.",
                code="nobody-to-attend",
            )
