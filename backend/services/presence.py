"""Who is there: what a generation that is looked at compares its pictures with."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import Concept
from backend.schemas.bases import BaseModelInfo
from backend.schemas.generations import GenerationCreate
from backend.schemas.presence import PresenceCheck
from backend.schemas.trainings import PinnedConcept
from backend.services import attention_guidance, photos

GUIDANCE_OF_MISSING = 3.0
"""Where a generation names no other: the least with which a missing subject came back (docs/methods.md)."""


def pinned(
    session: Session,
    owner_id: str,
    body: GenerationCreate,
    base: BaseModelInfo,
    names: Sequence[str],
    *,
    areas: Sequence[Sequence[str]],
    plain_text: str,
) -> PresenceCheck | None:
    """The part of the spec; None where nobody asked. ``names``: the tokens of the picture, ``areas`` those of each
    region. Styles are nowhere to be seen by themselves and are left out. Invalid where there is nothing to compare.
    """
    if not body.check:
        if body.retry_until_present:
            raise Invalid.at(
                "/retry_until_present", "Only pictures that are looked at can be tried again: set `check`."
            )
        _require_tries(body)
        return None
    _require_tries(body)
    if base.judges is None:
        raise Invalid.at(
            "/check",
            "Nobody judges pictures of this base model. An administrator can register judges (MOONGATE_JUDGES).",
            code="no-judges",
        )
    query = select(Concept).where(
        Concept.owner_id == owner_id,
        Concept.token.in_(names),
        Concept.deleted_at.is_(None),
        Concept.kind == "subject",
    )
    rows = {row.token: row for row in session.scalars(query)}
    if not rows:
        raise Invalid.at(
            "/check", "The prompt names no subject that could be looked for.", code="nobody-sought"
        )
    sought = [_concept(session, rows[name]) for name in dict.fromkeys(names) if name in rows]
    return PresenceCheck(
        judges=base.judges,
        concepts=sought,
        plain_text=plain_text,
        regions=[[rows[name].id for name in area if name in rows] for area in areas],
        retries=body.retry_until_present,
        guidance_of_missing=(body.attention_guidance or GUIDANCE_OF_MISSING) if body.guide_missing else 0.0,
    )


def _require_tries(body: GenerationCreate) -> None:
    if not body.guide_missing:
        return
    if not body.retry_until_present:
        raise Invalid.at(
            "/guide_missing",
            "Attention is guided to missing ones in further tries: set `retry_until_present` and `check`.",
        )
    if body.regions:
        raise Invalid.at("/guide_missing", attention_guidance.WITH_BOXES, code="attention-with-boxes")


def _concept(session: Session, row: Concept) -> PinnedConcept:
    pictures = photos.compared_with(session, row, "/check", "looking for it")
    return PinnedConcept(
        id=row.id,
        token=row.token,
        class_noun=row.class_noun,
        kind="subject",
        photos=photos.pinned(pictures),
    )
