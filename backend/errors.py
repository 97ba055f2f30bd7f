"""Errors a person may see: a stable code, a status, and a sentence that says what is wrong and what to do.

Raised by services, storage and uploads; turned into ``application/problem+json`` by ``backend.api.problems``
and into sentences beside fields by the pages. A detail never repeats the submitted value, a path, or a
library's text.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from backend.schemas.problems import FieldError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""``errno`` of an OSError that means `InsufficientStorage`."""


class AppError(Exception):
    """``code`` is machine-readable and stable; ``detail`` is a sentence; ``extra`` joins the standard members."""

    status: ClassVar[int] = 500
    code: str = "internal"
    title: ClassVar[str] = "Something went wrong"
    detail: str = "The studio could not do this. Try again; the log says more."

    def __init__(
        self,
        detail: str | None = None,
        *,
        code: str | None = None,
        errors: Sequence[FieldError] = (),
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.detail = detail or type(self).detail
        self.code = code or type(self).code
        self.errors = list(errors)
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})
        super().__init__(self.detail)

    @classmethod
    def at(cls, pointer: str, detail: str, *, code: str | None = None, **extra: Any) -> AppError:
        """An error about one field; ``pointer`` is a JSON pointer into the body, such as ``/files/3``."""
        return cls(detail, code=code, errors=[FieldError(pointer=pointer, detail=detail)], extra=extra)


class BadRequest(AppError):
    status = 400
    code = "bad-request"
    title = "The request cannot be read"
    detail = "The request is not well-formed. Check its syntax and send it again."


class Forbidden(AppError):
    status = 403
    code = "forbidden"
    title = "Not allowed"
    detail = "This is not allowed from here."


class NotFound(AppError):
    """Missing, deleted and somebody else's are answered alike."""

    status = 404
    code = "not-found"
    title = "Not found"
    detail = "There is nothing here, or it is not yours."


class MethodNotAllowed(AppError):
    status = 405
    code = "method-not-allowed"
    title = "This address does not take that method"
    detail = "Use one of the methods that the Allow header names."


class Conflict(AppError):
    status = 409
    code = "conflict"
    title = "Not possible in the present state"
    detail = "Something else stands in the way. Look at its present state and try again."


class PreconditionFailed(AppError):
    status = 412
    code = "precondition-failed"
    title = "It has changed in the meantime"
    detail = "Somebody changed this since you read it. Load it again and repeat your change."


class TooLarge(AppError):
    status = 413
    code = "too-large"
    title = "Too large"
    detail = "The request is larger than the studio accepts. Send less at once."


class UnsupportedMedia(AppError):
    status = 415
    code = "unsupported-media-type"
    title = "This type is not accepted"
    detail = "Send the body as application/json."


class Invalid(AppError):
    """Well-formed, but it means nothing we can do; ``errors`` names every wrong field at once."""

    status = 422
    code = "invalid"
    title = "Some values are not right"
    detail = "Some values are not right. Correct the fields that are named and send it again."


class TooMany(AppError):
    status = 429
    code = "too-many"
    title = "Too many at once"
    detail = "Too many at once. Wait a moment and try again."


class Unavailable(AppError):
    status = 503
    code = "unavailable"
    title = "Not available now"
    detail = "The studio cannot reach something it needs. Try again in a moment."


class InsufficientStorage(AppError):
    status = 507
    code = "storage-full"
    title = "The disk is almost full"
    detail = "The disk is almost full. Free some space, then try again; nothing was stored."
