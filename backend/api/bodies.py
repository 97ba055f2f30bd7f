"""Reading bodies strictly: malformed syntax is 400, a wrong content type 415, long before any field is looked at."""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from backend import strict_json
from backend.errors import BadRequest, UnsupportedMedia

MAX_DEPTH = 32
MAX_FILES = 20
_FORM_LIMITS = {"max_files": MAX_FILES, "max_fields": 20, "max_part_size": 64_000}
_CHUNK = 1 << 20


class StudioRequest(Request):
    """A request whose body was read by ``read`` before FastAPI looks at it. ``digest`` identifies the body."""

    digest: str = hashlib.sha256(b"").hexdigest()

    async def read(self, *, form: bool) -> None:
        """Read and check the body. BadRequest, UnsupportedMedia; the guard bounds its size."""
        media_type = self.headers.get("content-type", "").split(";")[0].strip().lower()
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMedia("Send the body without Content-Encoding.")
        if form:
            if media_type != "multipart/form-data":
                raise UnsupportedMedia("Send the files as multipart/form-data.")
            self.digest = await run_in_threadpool(_digest_of_form, await self._read_form())
        else:
            if media_type != "application/json":
                raise UnsupportedMedia
            body = await self.body()
            self._json = parse(body)
            self.digest = hashlib.sha256(body).hexdigest()

    async def _read_form(self) -> FormData:
        try:
            return await self.form(**_FORM_LIMITS)
        except (MultiPartException, ValueError) as error:
            raise _unreadable_form() from error
        except Exception as error:  # the framework wraps a parser's error when it runs inside an application
            if getattr(error, "status_code", None) == 400:
                raise _unreadable_form() from error
            raise


def _unreadable_form() -> BadRequest:
    return BadRequest(
        f"The multipart body cannot be read, or has more than {MAX_FILES} files. Send fewer files at once.",
        code="bad-multipart",
    )


def parse(body: bytes) -> Any:
    """A JSON object: UTF-8 without a mark, no duplicate keys, no NaN, at most MAX_DEPTH deep. BadRequest otherwise."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The body must be UTF-8.", code="malformed-json") from None
    if _too_deep(text):
        raise BadRequest("The JSON is nested too deeply.", code="malformed-json")
    try:
        value = strict_json.parsed(text)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON.", code="malformed-json") from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.", code="malformed-json")
    return value


def _too_deep(text: str) -> bool:
    """Whether brackets outside strings open deeper than the limit; a scan, so that no parser recurses first."""
    depth, in_string, escaped = 0, False, False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif character in "]}":
            depth -= 1
    return False


def _digest_of_form(form: FormData) -> str:
    """Over names and contents in order; the boundary, which every client draws anew, does not count."""
    digest = hashlib.sha256()
    for name, value in form.multi_items():
        digest.update(f"{len(name)}:{name};".encode())
        if isinstance(value, UploadFile):
            digest.update(f"{value.size};".encode())
            while chunk := value.file.read(_CHUNK):
                digest.update(chunk)
            value.file.seek(0)
        else:
            digest.update(f"{len(value)}:{value};".encode())
    return digest.hexdigest()
