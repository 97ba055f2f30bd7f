"""Whether a picture has somebody to whom its attention could be guided."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import Concept
from backend.schemas.generations import GenerationCreate


def require_someone(session: Session, owner_id: str, body: GenerationCreate, names: Sequence[str]) -> None:
    """Invalid where attention shall be guided and there are boxes, or no subject among the tokens ``names``: a style is
    nowhere to be seen by itself.
    """
    if not body.attention_guidance:
        return
    if body.regions:
        raise Invalid.at(
            "/attention_guidance",
            "Attention is not guided in a picture with boxes: they say already where concepts stand.",
            code="attention-with-boxes",
        )
    subjects = select(Concept.id).where(
        Concept.owner_id == owner_id,
        Concept.token.in_(names),
        Concept.deleted_at.is_(None),
        Concept.kind == "subject",
    )
    if session.scalar(subjects.limit(1)) is None:
        raise Invalid.at(
            "/attention_guidance",
            "The prompt names no subject that attention could be guided to.",
            code="nobody-to-attend",
        )
