"""The embedded doorbell's other end: a datagram socket in the data directory. A byte means: look at the table."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import structlog

from backend.queue import doorbell_path, short_socket_path

_log = structlog.get_logger(__name__)


class DoorbellSocket:
    """Bound while open. Where it cannot be bound the supervisor's own look finds the work a little later."""

    def __init__(self, data_dir: Path) -> None:
        self._path = doorbell_path(data_dir)
        self._socket: socket.socket | None = None

    def open(self) -> int | None:
        """The descriptor to wait on, or None."""
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bell.setblocking(False)
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            with short_socket_path(self._path) as path:
                bell.bind(path)
        except OSError as error:
            _log.warning("doorbell_not_bound", error=type(error).__name__)
            bell.close()
            return None
        self._socket = bell
        return bell.fileno()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
