"""The administrator's folder of captioned pictures, made fit for use: every picture goes through the darkroom as an
upload does, once, into a folder of our own that `worker.ml.training.retrieval` reads. The folder itself is only read.

A caption stands in ``<name>.txt`` beside the picture, or in any ``*.jsonl`` of the folder, a line
``{"file_name": ..., "text": ...}`` a picture (the layout of image folders of the datasets library). A line wins.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import AppError
from backend.uploads import Darkroom

if TYPE_CHECKING:  # the supervisor, which has no tensors, imports this module too
    from backend.settings import Settings
    from worker.ml.run import Run

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MOST_PICTURES = 5000
LONGEST_CAPTION = 500
LONGEST_LIST_BYTES = 16 << 20
WRITTEN_EVERY = 50
INDEX = "index.json"
UNREADABLE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM})


@dataclass(frozen=True)
class Limits:
    """What a picture may be, as `backend.uploads.PictureLimits`; the defaults are those of the settings."""

    max_upload_bytes: int = 25_000_000
    max_photo_pixels: int = 64_000_000
    min_photo_side_px: int = 256


def prior_config(settings: Settings) -> dict[str, Any]:
    """What the executor is told at its start: ``prior_folder``, empty for none, and ``picture_limits``."""
    limits = Limits(settings.max_upload_bytes, settings.max_photo_pixels, settings.min_photo_side_px)
    return {"prior_folder": str(settings.prior_folder or ""), "picture_limits": asdict(limits)}


class Staging:
    """A `Shelf` in the library's own folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stage(self) -> Path:
        """A fresh path."""
        return self._folder / f"{uuid.uuid4().hex}.tmp"

    def require_space(self) -> None:
        """A full disk is told by the write that meets it."""


def captions(folder: Path) -> dict[str, str]:
    """{path of a picture relative to ``folder``: its caption}, in the order of the paths, at most `MOST_PICTURES`.

    Pictures without a caption, links, and names that lead out of the folder are left out; so is a line that cannot be
    read. Raises OSError where the folder cannot.
    """
    with os.scandir(folder):  # a walk would take a folder that is gone for an empty one
        pass
    pictures = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.is_symlink()
    }
    found: dict[str, str] = {}
    for name, path in pictures.items():
        text = path.with_suffix(".txt")
        if text.is_file() and not text.is_symlink() and text.stat().st_size <= 4 * LONGEST_CAPTION:
            found[name] = text.read_text("utf-8", errors="replace")
    for listed in sorted(folder.glob("*.jsonl")):
        if listed.is_file() and not listed.is_symlink() and listed.stat().st_size <= LONGEST_LIST_BYTES:
            found |= _lines(listed)
    tidy = {name: " ".join(found[name].split()) for name in pictures if name in found}
    kept = {name: text for name, text in tidy.items() if 0 < len(text) <= LONGEST_CAPTION}
    return dict(list(kept.items())[:MOST_PICTURES])


def _lines(listed: Path) -> dict[str, str]:
    found = {}
    for line in listed.read_text("utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry["text"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if isinstance(name, str) and isinstance(text, str):
            found[name] = text
    return found


def refresh(folder: Path, library: Path, darkroom: Darkroom, told: Callable[[int, int], None]) -> None:
    """Make ``library`` hold ``folder`` as it is now: ``index.json`` and a clean JPEG for each picture that is sound.

    What is unchanged (size and time of change) is not prepared again. ``told(done, total)`` after each picture may
    raise; what was done by then is kept. Raises OSError where the folder cannot be read.
    """
    wanted = captions(folder)
    library.mkdir(parents=True, exist_ok=True)
    before, index = _read(library), {}
    for left in library.glob("*.tmp"):
        left.unlink(missing_ok=True)
    try:
        for done, (name, caption) in enumerate(wanted.items(), start=1):
            status = (folder / name).stat()
            stamp = [status.st_size, status.st_mtime_ns]
            entry = before.get(name)
            if entry is None or entry["stamp"] != stamp:
                entry = _prepared(folder / name, library, darkroom)
            index[name] = {**entry, "stamp": stamp, "caption": caption}
            if done % WRITTEN_EVERY == 0:
                _write(library, {**before, **index})
            told(done, len(wanted))
    except BaseException:
        _write(library, {**before, **index})
        raise
    _write(library, index)


def prepare(folder: Path, library: Path, limits: Limits, run: Run) -> None:
    """`refresh` as a part of a job. A folder that cannot be read is told as a note; what was there before is used.

    Raises what ``run.step("prior", ...)`` raises.
    """
    darkroom = Darkroom(Staging(library), limits)
    try:
        refresh(folder, library, darkroom, lambda done, total: run.step("prior", done, total))
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        run.note("prior_folder_unread", "The folder of captioned pictures cannot be read now.")
    finally:
        darkroom.close()


def _prepared(path: Path, library: Path, darkroom: Darkroom) -> dict[str, Any]:
    """``file`` and ``fingerprint``, or ``refused`` with the darkroom's code."""
    try:
        with path.open("rb") as file:
            [photo] = darkroom.prepare([(path.name, file)])
    except AppError as error:
        return {"refused": error.code}
    photo.thumbnail.unlink(missing_ok=True)
    name = f"{hashlib.sha256(photo.picture.read_bytes()).hexdigest()}.jpg"
    photo.picture.replace(library / name)
    return {"file": name, "fingerprint": photo.fingerprint}


def _read(library: Path) -> dict[str, dict[str, Any]]:
    """The entries whose files are there."""
    try:
        index = json.loads((library / INDEX).read_bytes())
    except (OSError, ValueError):
        return {}
    return {
        name: entry
        for name, entry in index.items()
        if "refused" in entry or (library / entry["file"]).is_file()
    }


def _write(library: Path, index: dict[str, dict[str, Any]]) -> None:
    staged = library / f"{INDEX}.{os.getpid()}.tmp"
    staged.write_text(json.dumps(index))
    staged.replace(library / INDEX)
