"""Idempotency keys: the same POST sent twice does its work once, however parallel, and across a crash.

A key is claimed in a transaction of its own; the answer is settled in the same transaction as the work. A crash in
between leaves either no work and a claim that soon lapses, or work with its answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.db import Database
from backend.errors import Conflict, Invalid
from backend.identifiers import new_id
from backend.models import IdempotencyKey, now

KEPT = timedelta(hours=24)
IN_FLIGHT = timedelta(minutes=5)
_KEPT_HEADERS = ("content-type", "location", "etag")


@dataclass(frozen=True)
class Answer:
    """What the first request was answered."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Claim:
    """Either the right to do the work (``answer`` is None), or the answer it already had."""

    owner_id: str
    key: str
    holder: str
    answer: Answer | None = None


def claim(database: Database, owner_id: str, key: str, fingerprint: str) -> Claim:
    """Take the key for this request, or find its answer.

    Conflict while the first request still runs; Invalid ``idempotency-mismatch`` when it was another request.
    """
    body_hash = hashlib.sha256(fingerprint.encode()).hexdigest()
    mine = Claim(owner_id, key, new_id())
    try:
        with database.write() as session:
            session.execute(delete(IdempotencyKey).where(*_row(mine), IdempotencyKey.expires_at < now()))
            row = session.scalar(select(IdempotencyKey).where(*_row(mine)))
            if row is not None:
                return _found(row, mine, body_hash)
            session.add(
                IdempotencyKey(
                    owner_id=owner_id,
                    key=key,
                    body_hash=body_hash,
                    status=None,
                    headers={"holder": mine.holder},
                    expires_at=now() + IN_FLIGHT,
                )
            )
    except IntegrityError:
        raise _in_flight() from None
    return mine


def _found(row: IdempotencyKey, mine: Claim, body_hash: str) -> Claim:
    if row.body_hash != body_hash:
        raise Invalid(
            "This Idempotency-Key was used for another request. Use a new key.", code="idempotency-mismatch"
        )
    if row.status is None:
        raise _in_flight()
    return Claim(mine.owner_id, mine.key, mine.holder, Answer(row.status, row.headers, row.body.encode()))


def _in_flight() -> Conflict:
    return Conflict(
        "The first request with this Idempotency-Key is still running. Ask again in a moment.",
        code="idempotency-in-flight",
        headers={"Retry-After": "1"},
    )


def settle(session: Session, mine: Claim, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Keep the answer, in the transaction of the work. Conflict when the claim lapsed and somebody else has it."""
    row = session.scalar(select(IdempotencyKey).where(*_row(mine)).with_for_update())
    if row is None or row.status is not None or row.headers.get("holder") != mine.holder:
        raise _in_flight()
    kept: dict[str, Any] = {name: headers[name] for name in _KEPT_HEADERS if name in headers}
    session.execute(
        update(IdempotencyKey)
        .where(*_row(mine))
        .values(status=status, headers=kept, body=body.decode(), expires_at=now() + KEPT)
    )


def release(database: Database, mine: Claim) -> None:
    """Give the key back after a request that failed: nothing was done, so it may be tried again."""
    with database.write() as session:
        session.execute(delete(IdempotencyKey).where(*_row(mine), IdempotencyKey.status.is_(None)))


def _row(mine: Claim) -> tuple[Any, Any]:
    return IdempotencyKey.owner_id == mine.owner_id, IdempotencyKey.key == mine.key
