"""The outermost layer: request ids, Host and Origin checks, body limits, security headers, last-resort errors, metrics.

Decisions rest on the raw headers and path, never on a URL that was put together from them (CVE-2026-48710).
"""

from __future__ import annotations

import asyncio
import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.problems import answer
from backend.auth import check_host, check_origin
from backend.errors import AppError, BadRequest, TooLarge
from backend.identifiers import new_id
from backend.metrics import Metrics
from backend.settings import Settings

JSON_LIMIT_BYTES = 1_000_000
UPLOAD_LIMIT_BYTES = 250_000_000
BODY_IDLE_S = 30.0
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{8,64}$")
_log = structlog.get_logger("moongate.http")


class Guard:
    """Wraps the whole application; nothing is answered without passing here."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = scope["request_id"] = given if _REQUEST_ID.fullmatch(given) else new_id()
        started, status, took_s = time.perf_counter(), 0, 0.0

        async def send_guarded(message: Message) -> None:
            nonlocal status, took_s
            if message["type"] == "http.response.start":
                status, took_s = message["status"], time.perf_counter() - started
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = request_id
                for name, value in _HEADERS.items():
                    answered.setdefault(name, value)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                check_host(headers.getlist("host"), self._settings)
                check_origin(scope["method"], headers)
                await self._app(scope, _bounded(headers, receive), send_guarded)
            except Exception as error:
                if status:
                    raise
                if not isinstance(error, AppError):
                    _log.exception("unforeseen", path=scope["path"][:200])
                refusal = error if isinstance(error, AppError) else AppError()
                response = answer(refusal, path=scope["path"][:1000], request_id=request_id)
                await response(scope, receive, send_guarded)
            finally:
                self._record(scope, status, took_s)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "") or "unmatched"
        self._metrics.observe(scope["method"], route, status, seconds)
        _log.info("request", method=scope["method"], route=route, status=status, ms=round(seconds * 1000, 1))


def _bounded(headers: Headers, receive: Receive) -> Receive:
    """``receive`` that refuses a body above the limit before it is read, and one that stands still."""
    upload = headers.get("content-type", "").lower().startswith("multipart/form-data")
    limit, total, ended = (UPLOAD_LIMIT_BYTES if upload else JSON_LIMIT_BYTES), 0, False
    declared = headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit():
        raise BadRequest("The Content-Length is not a number.")
    if int(declared[:20]) > limit:
        raise TooLarge(extra={"limit_bytes": limit})

    async def bounded() -> Message:
        nonlocal total, ended
        if ended:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), BODY_IDLE_S)
        except TimeoutError:
            raise HTTPException(408) from None
        total += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if total > limit:
            raise HTTPException(413)
        return message

    return bounded
