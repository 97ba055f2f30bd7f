"""ETags of JSON: a client that has the present version is answered 304, one that edits an old version 412."""

from __future__ import annotations

import hashlib

from fastapi import Request, Response

from backend.errors import PreconditionFailed
from backend.schemas.strict import Strict


def entity_tag(body: bytes) -> str:
    """The ETag of a JSON body."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def matches(header: str, tag: str) -> bool:
    """Whether an If-Match or If-None-Match header names this tag."""
    return header.strip() == "*" or tag in (part.strip().removeprefix("W/") for part in header.split(","))


def require_match(request: Request, current: Strict) -> None:
    """PreconditionFailed when If-Match names another version than the present one."""
    header = request.headers.get("if-match")
    if header is not None and not matches(header, entity_tag(current.model_dump_json().encode())):
        raise PreconditionFailed


def revalidated(request: Request, response: Response) -> Response:
    """Private JSON with an ETag; 304 when the client has it already."""
    body = getattr(response, "body", None)
    media_type = response.headers.get("content-type", "")
    if response.status_code != 200 or media_type != "application/json" or not isinstance(body, bytes):
        return response
    response.headers["etag"] = entity_tag(body)
    response.headers.setdefault("cache-control", "private, no-cache")
    if matches(request.headers.get("if-none-match", ""), response.headers["etag"]):
        kept = {name: response.headers[name] for name in ("etag", "cache-control")}
        return Response(status_code=304, headers=kept)
    return response
