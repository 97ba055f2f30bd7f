"""Keyset pages, newest first: the cursor is the id of the last row, so any depth costs the same."""

from __future__ import annotations

import re
from typing import TypeVar

from sqlalchemy import ColumnElement, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from backend.errors import Invalid

Row = TypeVar("Row")
_ID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")


def before(column: InstrumentedAttribute[str], cursor: str | None) -> list[ColumnElement[bool]]:
    """The condition for the page after ``cursor``. Invalid for a cursor that no list returned."""
    if cursor is None:
        return []
    if not _ID.fullmatch(cursor):
        raise Invalid.at("/cursor", "This is not a cursor that a list returned.")
    return [column < cursor]


def take(
    session: Session,
    query: Select[Row],
    column: InstrumentedAttribute[str],
    limit: int,
    cursor: str | None,
) -> tuple[list[Row], str | None]:
    """At most ``limit`` rows of ``query`` by falling ``column``, and the cursor of the next page."""
    found = query.where(*before(column, cursor)).order_by(column.desc()).limit(limit + 1)
    rows = list(session.scalars(found))
    return rows[:limit], getattr(rows[limit - 1], column.key) if len(rows) > limit else None


def literal(text: str) -> str:
    """A LIKE pattern that finds ``text`` itself anywhere; use with ``escape="\\\\"``."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
