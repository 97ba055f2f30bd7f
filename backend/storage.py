"""Files, each under a fresh key with its sha256 as a column: a local directory with staging and rename.

A file is written into ``staging/``, fsynced, renamed to ``objects/<shard>/<uuid>`` on the same filesystem, and
the directory fsynced: a reader sees nothing or the whole file, also after a power cut. Keys are never reused.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from backend import process_tag
from backend.errors import DISK_FULL, InsufficientStorage
from backend.failpoints import fp
from backend.identifiers import new_id
from backend.process_tag import ProcessTag

_KEY = re.compile(r"^[0-9a-f]{2}/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Stored:
    """A published file. ``key`` is opaque; ``sha256`` is hexadecimal."""

    key: str
    sha256: str
    size_bytes: int


class Storage:
    """put, adopt, open, delete below one root.

    Raises InsufficientStorage when the disk is full, or below the low-water mark where a caller asks.
    """

    def __init__(self, root: Path, low_water_bytes: int = 0) -> None:
        self.root = root.resolve()
        self.low_water_bytes = low_water_bytes
        self._objects = self.root / "objects"
        self._staging = self.root / "staging"
        self._tags = self.root / "tags"
        for folder in (self._objects, self._staging, self._tags):
            folder.mkdir(parents=True, exist_ok=True)
        self._tag: ProcessTag | None = None

    # ---- writing

    def put(self, content: bytes | Path) -> Stored:
        """Store bytes, or a copy of a local file."""
        target = self.stage()
        try:
            with _disk_full_is_507(), target.open("xb") as out:
                if isinstance(content, Path):
                    with _open_regular(content) as source:
                        shutil.copyfileobj(source, out, _CHUNK)
                else:
                    out.write(content)
                fp("storage.write")
            return self.adopt(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def stage(self) -> Path:
        """A fresh path on the storage's own filesystem, for a file that is still being written."""
        if self._tag is None:
            self._tag = ProcessTag(self._tags)
        return self._staging / f"{self._tag.name}.{new_id()}"

    def adopt(self, path: Path) -> Stored:
        """Publish a finished local file by moving it in; ``path`` is gone then. OSError for a symlink."""
        digest, size = hashlib.sha256(), 0
        with _disk_full_is_507(), _open_regular(path) as source:
            fp("storage.adopt")
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
            os.fsync(source.fileno())
        name = new_id()
        key = f"{name[-2:]}/{name}"
        target = self._objects / key
        with _disk_full_is_507():
            if not target.parent.exists():
                target.parent.mkdir(exist_ok=True)
                _fsync_directory(self._objects)
            try:
                path.rename(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                stored = self.put(path)  # another filesystem: copy, then rename here
                path.unlink()
                return stored
            _fsync_directory(target.parent)
        return Stored(key=key, sha256=digest.hexdigest(), size_bytes=size)

    def delete(self, key: str) -> None:
        """Remove a file; one that is gone already is no error."""
        self.path(key).unlink(missing_ok=True)

    # ---- reading

    def path(self, key: str) -> Path:
        """The local file of a key. ValueError for anything that is not a key of ours."""
        if not _KEY.fullmatch(key):
            raise ValueError("not a storage key")
        return self._objects / key

    def open(self, key: str) -> BinaryIO:
        """The file, opened without following links. FileNotFoundError when it is gone."""
        return _open_regular(self.path(key))

    def keys(self, older_than_s: float = 0.0) -> Iterator[str]:
        """Every stored key whose file was published at least so long ago (for garbage collection)."""
        before = time.time() - older_than_s
        for shard in sorted(self._objects.iterdir()):
            for file in shard.iterdir():
                try:
                    old = file.lstat().st_ctime <= before
                except FileNotFoundError:
                    continue
                if old:
                    yield f"{shard.name}/{file.name}"

    def sweep_staging(self, older_than_s: float) -> int:
        """Remove staged files of processes that are gone, and any unfinished for so long; returns how many."""
        before, removed = time.time() - older_than_s, 0
        gone = process_tag.dead(self._tags)
        for file in self._staging.iterdir():
            try:
                if file.name.partition(".")[0] in gone or file.lstat().st_mtime <= before:
                    file.unlink()
                    removed += 1
            except FileNotFoundError:
                continue
        return removed

    # ---- space

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    def require_space(self, needed_bytes: int = 0) -> None:
        """Refuse new work when it would leave less than the low-water mark."""
        if self.free_bytes() - needed_bytes < self.low_water_bytes:
            raise InsufficientStorage

    def writable(self) -> bool:
        """Whether a file can be written and removed now (for /readyz)."""
        probe = self.stage()
        try:
            probe.write_bytes(b"ok")
            probe.unlink()
        except OSError:
            return False
        return True


def _open_regular(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


def _fsync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_full_is_507() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise InsufficientStorage from error
        raise
