"""Base models, as workers have registered them; the web process only reads and counts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from backend.errors import Invalid, Unavailable
from backend.models import BaseModel, Worker, now
from backend.schemas.bases import BaseDescription, BaseModelInfo
from backend.schemas.methods.card import NEEDS, MethodCard

LIVE_S = 30.0
"""A worker that was seen this recently counts as alive."""


def list_all(session: Session, live_s: float = LIVE_S) -> list[BaseModelInfo]:
    """Every registered base model; ``available`` when a live worker has it."""
    served = _served(session, live_s)
    rows = session.scalars(select(BaseModel).order_by(BaseModel.id)).all()
    return [_info(row, (row.id, row.hash) in served) for row in rows]


def choose(session: Session, wanted: str | None, pointer: str = "/base") -> BaseModelInfo:
    """The base that was asked for, else the only one. Invalid when it is unknown, unavailable or ambiguous.

    While no worker at all is alive every registered base is taken: the work waits in the queue for one.
    """
    known = {base.id: base for base in list_all(session)}
    if not known:
        raise Unavailable(
            "No base model is ready yet: the worker is still starting. Try again in a moment.",
            code="no-base-model",
            headers={"Retry-After": "5"},
        )
    alive = _served(session, LIVE_S)
    ready = {name: base for name, base in known.items() if base.available} if alive else known
    if wanted is None:
        if len(ready) == 1:
            return next(iter(ready.values()))
        if not ready:
            raise Invalid.at(pointer, "No worker has a base model at the moment.", code="base-unavailable")
        raise Invalid.at(pointer, "There are several base models. Say which one.", code="base-required")
    if wanted not in known:
        raise Invalid.at(pointer, "There is no such base model.", code="unknown-base")
    if wanted not in ready:
        raise Invalid.at(pointer, "No worker has this base model at the moment.", code="base-unavailable")
    return known[wanted]


def likely(known: Sequence[BaseModelInfo], wanted: str = "") -> BaseModelInfo | None:
    """The base that is wanted, else the first that a worker has, else the first; None while none is known."""
    best = sorted(known, key=lambda base: (base.id != wanted, not base.available))
    return best[0] if best else None


def cannot_be_taught(base: BaseModelInfo, card: MethodCard) -> str:
    """Why the base cannot be taught with the method, as a sentence; empty when it can."""
    if card.name in base.methods:
        return ""
    if not card.needs:
        return f"No worker that has {base.title} offers {card.title}: it may run an earlier version."
    needed = " and ".join(NEEDS.get(need, need) for need in sorted(card.needs))
    return f"{card.title} needs {needed}. {base.title} does not offer that."


def with_tokenizer(session: Session, base_id: str) -> BaseDescription:
    """The whole description, tokenizer included. Invalid when the base is unknown."""
    row = session.get(BaseModel, base_id, options=[undefer(BaseModel.tokenizer_json)])
    if row is None:
        raise Invalid.at("/base", "There is no such base model.", code="unknown-base")
    return BaseDescription.model_validate({**row.description, "tokenizer_json": row.tokenizer_json})


def _served(session: Session, live_s: float) -> set[tuple[str, str]]:
    query = select(Worker.bases).where(
        Worker.seen_at > now() - timedelta(seconds=live_s), Worker.state.in_(("starting", "ready", "busy"))
    )
    return {(base, digest) for bases in session.scalars(query) for base, digest in bases.items()}


def _info(row: BaseModel, available: bool) -> BaseModelInfo:
    known = {name: row.description[name] for name in BaseModelInfo.model_fields if name in row.description}
    return BaseModelInfo.model_validate({**known, "available": available})
