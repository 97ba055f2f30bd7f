"""A wire to PostgreSQL that can be cut after a COMMIT has reached the server and before its answer comes back."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from sqlalchemy.engine import make_url

SOCKET = ".s.PGSQL.5432"


class CutWire:
    """Listens below ``folder``; ``url`` is that of the same database through the wire."""

    def __init__(self, folder: Path, url: str) -> None:
        there = make_url(url)
        self._server = str(Path(str(there.query["host"])) / SOCKET)
        self.url = there.update_query_dict({"host": str(folder)}).render_as_string(hide_password=False)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / SOCKET))
        self._listener.listen()
        self._marker: bytes | None = None
        self._lock = threading.Lock()
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, marker: bytes) -> None:
        """Cut once: the first transaction that says ``marker``, at its COMMIT."""
        self._marker = marker

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                deaf = threading.Event()
                threading.Thread(target=self._requests, args=(client, server, deaf), daemon=True).start()
                threading.Thread(target=self._answers, args=(client, server, deaf), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        marked = False
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                marked = (marked and b"BEGIN" not in data) or (
                    self._marker is not None and self._marker in data
                )
                if marked and b"COMMIT" in data and self._claim():
                    deaf.set()
                server.sendall(data)
        _hang_up(server)

    def _claim(self) -> bool:
        with self._lock:
            ours, self._marker = self._marker is not None, None
            self.cuts += ours
            return ours

    def _answers(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while (data := server.recv(1 << 16)) and not deaf.is_set():
                client.sendall(data)
        _hang_up(client)
        _hang_up(server)


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
