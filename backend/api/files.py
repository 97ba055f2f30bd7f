"""Files of the storage over HTTP: type fixed by us, private, revalidated by content hash, sandboxed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from backend.api.revalidation import matches
from backend.errors import NotFound

SANDBOX = "sandbox; default-src 'none'"


def send(
    request: Request,
    path: Path,
    *,
    media_type: str,
    sha256: str,
    name: str | None = None,
    disposition: Literal["inline", "attachment"] = "inline",
    changes: bool = False,
) -> Response:
    """A whole file, a range of it, or 304. ``name`` is RFC 6266-encoded. NotFound when the file is gone.

    ``sha256`` identifies the content for ever: keys are never reused, so the answer may be kept, privately, unless
    the same address may show something else later (``changes``).
    """
    if path.is_symlink() or not path.is_file():
        raise NotFound
    headers = {
        "etag": f'"{sha256}"',
        "cache-control": "private, no-cache" if changes else "private, max-age=31536000, immutable",
        "content-security-policy": SANDBOX,
    }
    if matches(request.headers.get("if-none-match", ""), headers["etag"]):
        return Response(status_code=304, headers=headers)
    return FileResponse(
        path,
        headers=headers,
        media_type=media_type,
        filename=name,
        content_disposition_type=disposition,
        stat_result=path.lstat(),
    )


def stream(pieces: Iterator[bytes], *, media_type: str, name: str) -> Response:
    """A file that is made while it is sent."""
    headers = {
        "cache-control": "private, no-cache",
        "content-disposition": f"attachment; filename*=utf-8''{quote(name)}",
        "content-security-policy": SANDBOX,
    }
    return StreamingResponse(pieces, headers=headers, media_type=media_type)


def file_of(*media_types: str) -> dict[str, Any]:
    """``responses[200]`` of a route that sends a file."""
    return {
        "description": "The file",
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in media_types
        },
    }
