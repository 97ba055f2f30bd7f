"""A name that is locked for as long as its process lives, so that others can tell whose unfinished files are rubbish.

The kernel drops the lock when a process ends, however it ends. On a shared filesystem it must have working ``flock``.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from backend.identifiers import new_id


class ProcessTag:
    """``name`` is unique; the lock is held until this object or its process is gone. ``folder`` must exist."""

    def __init__(self, folder: Path) -> None:
        while True:
            self.name = new_id()
            path = folder / self.name
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                ours = os.fstat(descriptor).st_ino == path.stat().st_ino
            except FileNotFoundError:
                ours = False  # a sweeper was quicker than the lock
            if ours:
                break
            os.close(descriptor)
        weakref.finalize(self, os.close, descriptor)


def dead(folder: Path) -> set[str]:
    """Tags in ``folder`` whose processes are gone; their lock files are removed."""
    found = set()
    for path in folder.iterdir():
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            path.unlink(missing_ok=True)
            found.add(path.name)
        finally:
            os.close(descriptor)
    return found
