"""What handlers ask for: the studio, a session, the owner, ids that look like ids.

What costs nothing is ``async`` and runs on the event loop; what touches the database runs in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from sqlalchemy.orm import Session

from backend.auth import current_owner
from backend.errors import NotFound
from backend.services import idempotency
from backend.studio import Studio

_ID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")


async def studio_of(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


def reads(studio: Annotated[Studio, Depends(studio_of)]) -> Iterator[Session]:
    """A session that never commits."""
    with studio.reading() as session:
        yield session


def writes(request: Request, studio: Annotated[Studio, Depends(studio_of)]) -> Iterator[Session]:
    """One transaction, committed after the answer was rendered and before it is sent; then the doorbell rings."""
    try:
        with studio.writing() as session:
            yield session
            claim = getattr(request.state, "claim", None)
            if claim is not None:
                response = request.state.response
                idempotency.settle(
                    session, claim, response.status_code, dict(response.headers), response.body
                )
    except BaseException:
        claim = getattr(request.state, "claim", None)
        if claim is not None:
            idempotency.release(studio.database, claim)
        raise


async def identifier(value: Annotated[str, Path(alias="id")]) -> str:
    """An id of the path. Anything that is not one of our ids is simply not found."""
    return checked(value)


async def owner_of() -> str:
    """Whose things this request is about."""
    return current_owner()


def checked(value: str) -> str:
    """The value when it has the form of our ids. NotFound otherwise."""
    if not _ID.fullmatch(value):
        raise NotFound
    return value


Studied = Annotated[Studio, Depends(studio_of)]
Reads = Annotated[Session, Depends(reads, scope="function")]
Writes = Annotated[Session, Depends(writes, scope="function")]
Owner = Annotated[str, Depends(owner_of)]
ItemId = Annotated[str, Depends(identifier)]
Limit = Annotated[int, Query(ge=1, le=200, description="how many at most")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next` of the page before")]
