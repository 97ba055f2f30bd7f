"""An uploaded weights file becomes a staged one that was read strictly in a confined child, or a sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from backend.confined import environment
from backend.errors import AppError, Invalid, TooLarge, UnsupportedMedia
from backend.schemas.problems import FieldError
from backend.schemas.weights import ReadForeign, ReadWeights
from backend.uploads import Shelf

READING_S = 60.0
_POINTER = "/file"


@dataclass(frozen=True)
class ReceivedWeights:
    """A sound file, staged in the storage; ``services.imports.store`` adopts or discards it."""

    path: Path
    read: ReadWeights

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ReceivedForeign:
    """A sound file of another program; ``services.foreign_imports.native`` makes a native one of it and discards it."""

    path: Path
    read: ReadForeign

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


def receive(shelf: Shelf, file: BinaryIO, limit_bytes: int) -> ReceivedWeights | ReceivedForeign:
    """Stage the bytes and read them in a child. Raises an AppError at ``/file``; then nothing is kept."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise Invalid.at(_POINTER, "This file is empty.", code="empty-file")
    if size > limit_bytes:
        said = f"A weights file may have at most {limit_bytes // 1_000_000} MB."
        raise TooLarge(said, code="file-too-large", errors=[FieldError(pointer=_POINTER, detail=said)])
    shelf.require_space()
    path = shelf.stage()
    try:
        with path.open("xb") as copy:
            shutil.copyfileobj(file, copy)
        read = _read(path)
        return ReceivedWeights(path, read) if isinstance(read, ReadWeights) else ReceivedForeign(path, read)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _read(path: Path) -> ReadWeights | ReadForeign:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "backend.weights_file", str(path)],
            capture_output=True,
            check=True,
            timeout=READING_S,
            cwd=Path(__file__).resolve().parent.parent,
            env=environment(),
        )
        answer = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        raise _refusal("weights-invalid", "This file cannot be read. Export it again.") from None
    if "code" in answer:
        raise _refusal(answer["code"], answer["detail"])
    return (ReadWeights if "manifest" in answer else ReadForeign).model_validate(answer)


def _refusal(code: str, detail: str) -> AppError:
    kind = UnsupportedMedia if code == "unsupported-weights" else Invalid
    return kind(detail, code=code, errors=[FieldError(pointer=_POINTER, detail=detail)])
