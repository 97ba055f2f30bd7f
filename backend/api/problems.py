"""Every error answer has one shape: ``application/problem+json`` (RFC 9457), without the value that was submitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from backend import errors
from backend.errors import AppError
from backend.schemas.problems import FieldError, Problem

MEDIA_TYPE = "application/problem+json"
_POINTER_LIMIT = 200
_BY_STATUS: dict[int, type[AppError]] = {
    kind.status: kind
    for kind in (
        errors.BadRequest,
        errors.Forbidden,
        errors.NotFound,
        errors.MethodNotAllowed,
        errors.Conflict,
        errors.PreconditionFailed,
        errors.TooLarge,
        errors.UnsupportedMedia,
        errors.Invalid,
        errors.TooMany,
        errors.Unavailable,
        errors.InsufficientStorage,
    )
}
_log = structlog.get_logger(__name__)


def answer(error: AppError, *, path: str, request_id: str) -> JSONResponse:
    """The response of an error. ``path`` is the raw path, never a URL built from the Host header."""
    problem = Problem(
        type=f"urn:moongate:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=path,
        code=error.code,
        request_id=request_id,
        errors=error.errors,
    )
    body = {**error.extra, **problem.model_dump(mode="json")}
    return JSONResponse(body, error.status, media_type=MEDIA_TYPE, headers=error.headers)


def field_errors(found: Sequence[Mapping[str, Any]], prefix: str = "") -> list[FieldError]:
    """Pydantic's findings as JSON pointers and our own sentences; the values are not repeated."""
    return [
        FieldError(pointer=_pointer(item.get("loc", ()), prefix), detail=sentence(item)) for item in found
    ]


def sentence(item: Mapping[str, Any]) -> str:
    """What is wrong with one field and what to do, from pydantic's error type and limits."""
    kind, limits = str(item.get("type", "")), item.get("ctx") or {}
    if kind == "literal_error":
        return f"Must be {limits.get('expected', 'one of the listed values')}."
    template = _SENTENCES.get(kind)
    try:
        return template.format(**limits) if template else "This value is not right; see the API description."
    except (KeyError, IndexError):
        return "This value is not right; see the API description."


_SENTENCES = {
    "missing": "This field is required.",
    "extra_forbidden": "There is no such field here; remove it.",
    "string_type": "Must be a text.",
    "string_too_short": "Must not be shorter than {min_length} characters.",
    "string_too_long": "Must not be longer than {max_length} characters.",
    "string_pattern_mismatch": "Does not have the right form; see the API description.",
    "int_type": "Must be a whole number.",
    "int_parsing": "Must be a whole number.",
    "int_parsing_size": "This number is too large.",
    "int_from_float": "Must be a whole number.",
    "float_type": "Must be a number.",
    "float_parsing": "Must be a number.",
    "finite_number": "Must be a finite number.",
    "bool_type": "Must be true or false.",
    "bool_parsing": "Must be true or false.",
    "greater_than_equal": "Must be at least {ge}.",
    "greater_than": "Must be more than {gt}.",
    "less_than_equal": "Must be at most {le}.",
    "less_than": "Must be less than {lt}.",
    "too_short": "Must have at least {min_length} entries.",
    "too_long": "Must have at most {max_length} entries.",
    "list_type": "Must be a list.",
    "dict_type": "Must be an object.",
    "model_type": "Must be an object.",
    "model_attributes_type": "Must be an object.",
    "datetime_parsing": "Must be a time in RFC 3339 form.",
}


def _pointer(location: Sequence[Any], prefix: str) -> str:
    parts = list(location)
    if parts and parts[0] in ("body", "query", "path", "header", "cookie"):
        parts = parts[1:]
    escaped = (str(part).replace("~", "~0").replace("/", "~1") for part in parts)
    return (prefix + "".join(f"/{part}" for part in escaped))[:_POINTER_LIMIT]


def from_status(status: int, headers: Mapping[str, str] | None = None) -> AppError:
    """The error of a bare HTTP status, as the framework raises it."""
    kind = _BY_STATUS.get(status, errors.BadRequest if status < 500 else AppError)
    return kind(headers=headers)


def install(app: FastAPI) -> None:
    """Register the handlers. What nobody foresaw is answered by ``guards.Guard`` as a 500 without detail."""

    def reply(request: Request, error: AppError) -> JSONResponse:
        return answer(error, path=request.scope["path"][:1000], request_id=request.scope["request_id"])

    @app.exception_handler(AppError)
    def _app_error(request: Request, error: AppError) -> JSONResponse:
        return reply(request, error)

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return reply(request, errors.Invalid(errors=field_errors(error.errors())))

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        return reply(request, from_status(error.status_code, error.headers))

    def _database(request: Request, error: Exception) -> JSONResponse:
        _log.warning("database_unavailable", error=type(error).__name__)
        return reply(request, errors.Unavailable(headers={"Retry-After": "5"}))

    @app.exception_handler(OSError)
    def _disk(request: Request, error: OSError) -> JSONResponse:
        if error.errno not in errors.DISK_FULL:
            raise error
        _log.warning("disk_full")
        return reply(request, errors.InsufficientStorage())

    for kind in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(kind, _database)
