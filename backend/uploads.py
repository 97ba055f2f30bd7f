"""Untrusted bytes become verified, upright, metadata-free sRGB pictures with a thumbnail, or a sentence each.

Decoding happens in a child process with limits (``backend.darkroom``). The original bytes are not kept.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from backend.confined import environment
from backend.errors import AppError, InsufficientStorage, Invalid, TooLarge, Unavailable, UnsupportedMedia
from backend.schemas.problems import FieldError

PICTURE_TYPE = "image/jpeg"
THUMBNAIL_TYPE = "image/webp"
MAX_FILES = 20
PICTURE_S = 20.0
NEAR_BITS = 6
"""Difference hashes this close (of 64 bits) are almost certainly the same scene."""
_NAME_LIMIT = 120
_STATUS: dict[str, type[AppError]] = {
    "unsupported-image": UnsupportedMedia,
    "file-too-large": TooLarge,
    "storage-full": InsufficientStorage,
}


@dataclass(frozen=True)
class PreparedPhoto:
    """A clean picture and its thumbnail, staged in the storage; ``services.photos.add`` adopts or discards them."""

    display_name: str
    width: int
    height: int
    fingerprint: str
    warnings: tuple[str, ...]
    picture: Path
    thumbnail: Path

    def discard(self) -> None:
        """Remove the staged files."""
        self.picture.unlink(missing_ok=True)
        self.thumbnail.unlink(missing_ok=True)


class Shelf(Protocol):
    """Where prepared files wait: the storage's staging."""

    def stage(self) -> Path:
        """A fresh path."""
        ...

    def require_space(self) -> None:
        """Raises InsufficientStorage when the disk is almost full."""
        ...


class PictureLimits(Protocol):
    """What a picture may be: bytes, pixels, and the shorter side. `Settings` says it."""

    @property
    def max_upload_bytes(self) -> int: ...
    @property
    def max_photo_pixels(self) -> int: ...
    @property
    def min_photo_side_px(self) -> int: ...


class Darkroom:
    """Prepares pictures one after the other, in a child that is started when needed and replaced when it dies."""

    def __init__(self, shelf: Shelf, settings: PictureLimits) -> None:
        self._shelf, self._settings = shelf, settings
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def prepare(self, files: Sequence[tuple[str, BinaryIO]]) -> list[PreparedPhoto]:
        """All or none. Raises an AppError whose ``errors`` name every file that is refused (``/files/3``)."""
        if not 1 <= len(files) <= MAX_FILES:
            raise Invalid.at("/files", f"Send 1 to {MAX_FILES} files in one request.")
        self._shelf.require_space()
        prepared: list[PreparedPhoto] = []
        refused: list[tuple[str, FieldError]] = []
        try:
            for index, (name, file) in enumerate(files):
                result = self._prepare_one(name, file)
                if isinstance(result, PreparedPhoto):
                    prepared.append(result)
                else:
                    refused.append(
                        (result["code"], FieldError(pointer=f"/files/{index}", detail=result["detail"]))
                    )
            if refused:
                raise _refusal(refused)
        except BaseException:
            for photo in prepared:
                photo.discard()
            raise
        return prepared

    def edit(
        self,
        picture: Path,
        name: str,
        *,
        rotate: int = 0,
        crop: tuple[float, float, float, float] | None = None,
    ) -> PreparedPhoto:
        """A stored picture turned (clockwise degrees), then cropped (x, y, width, height as shares of the turned one).

        ``picture`` is left as it is. Raises an AppError at ``/crop`` when what is left cannot be a photo.
        """
        self._shelf.require_space()
        result = self._develop(name, picture, rotate=rotate, crop=crop)
        if isinstance(result, PreparedPhoto):
            return result
        raise _refusal([(result["code"], FieldError(pointer="/crop", detail=result["detail"]))])

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def _prepare_one(self, name: str, file: BinaryIO) -> PreparedPhoto | dict[str, str]:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size == 0:
            return {"code": "empty-file", "detail": "This file is empty."}
        if size > self._settings.max_upload_bytes:
            limit = self._settings.max_upload_bytes // 1_000_000
            return {
                "code": "file-too-large",
                "detail": f"A photo may have at most {limit} MB. Scale it down.",
            }
        source = self._shelf.stage()
        try:
            with source.open("xb") as copy:
                shutil.copyfileobj(file, copy)
            return self._develop(name, source)
        finally:
            source.unlink(missing_ok=True)

    def _develop(self, name: str, source: Path, **edits: Any) -> PreparedPhoto | dict[str, str]:
        picture, thumbnail = self._shelf.stage(), self._shelf.stage()
        answer = self._ask(
            source=str(source),
            picture=str(picture),
            thumbnail=str(thumbnail),
            min_side_px=self._settings.min_photo_side_px,
            max_pixels=self._settings.max_photo_pixels,
            **edits,
        )
        if "done" not in answer:
            picture.unlink(missing_ok=True)
            thumbnail.unlink(missing_ok=True)
            return answer
        done = answer["done"]
        return PreparedPhoto(
            display_name=display_name(name),
            width=done["width"],
            height=done["height"],
            fingerprint=done["fingerprint"],
            warnings=tuple(done["warnings"]),
            picture=picture,
            thumbnail=thumbnail,
        )

    # ---- the child

    def _ask(self, **request: Any) -> dict[str, Any]:
        """The child's answer. A child that died (idle, or of this picture) is replaced once."""
        line = json.dumps(request).encode() + b"\n"
        if not self._lock.acquire(timeout=60):
            raise Unavailable(
                "Too many photos are being prepared. Try again in a moment.", headers={"Retry-After": "10"}
            )
        try:
            for _ in range(2):
                child = self._started()
                for path in (request["picture"], request["thumbnail"]):
                    Path(path).unlink(missing_ok=True)
                try:
                    assert child.stdin is not None
                    child.stdin.write(line)
                    child.stdin.flush()
                    answer = self._read_line(child)
                except OSError:
                    answer = b""
                if answer:
                    return dict(json.loads(answer))
                self._stop()
        finally:
            self._lock.release()
        return {
            "code": "unreadable-image",
            "detail": "This picture cannot be read. Save it again as JPEG or PNG.",
        }

    def _read_line(self, child: subprocess.Popen[bytes]) -> bytes:
        """One line, or nothing when the child died or took too long."""
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], PICTURE_S)[0]:
            return b""
        return child.stdout.readline()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._stop()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "backend.darkroom"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).resolve().parent.parent,
                env=environment(),
            )
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                continue
        child.kill()
        child.wait()


def display_name(name: str) -> str:
    """The last part of a file's name, without what could mislead a reader; never used as a path."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    shown = "".join(
        character for character in last if unicodedata.category(character)[0] not in "CZ" or character == " "
    )
    return shown.strip()[:_NAME_LIMIT] or "photo"


def near(one: str, other: str) -> bool:
    """Whether two fingerprints are of almost the same picture."""
    return (int(one, 16) ^ int(other, 16)).bit_count() <= NEAR_BITS


def _refusal(refused: Sequence[tuple[str, FieldError]]) -> AppError:
    codes = {code for code, _ in refused}
    kinds = {_STATUS.get(code, Invalid) for code in codes}
    kind = kinds.pop() if len(kinds) == 1 else Invalid
    errors = [error for _, error in refused]
    detail = errors[0].detail if len(errors) == 1 else "Some of the files cannot be used; none was stored."
    return kind(detail, code=codes.pop() if len(codes) == 1 else "files-refused", errors=errors)
