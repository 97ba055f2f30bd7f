"""RFC 9457 problem details: the one shape of every error answer."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from backend.schemas.strict import Strict


class FieldError(Strict):
    """One wrong field; ``pointer`` is a JSON pointer into the request body."""

    pointer: str
    detail: str


class Problem(Strict):
    """``application/problem+json``. ``code`` is stable and machine-readable; ``extra`` members (such as ``tokens`` and
    ``limit`` of ``prompt-too-long``) stand beside the standard ones in the body."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[FieldError] = Field(default_factory=list)
    extra: dict[str, Any] = Field(default_factory=dict, exclude=True)
