"""One supervisor a device: an exclusive file lock, so that a second worker pinned to it exits with a clear error."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path


class SlotTaken(Exception):
    """Another supervisor of this data directory holds the device."""


class Slot:
    """The lock of a device. Whoever holds it knows that every earlier supervisor of the slot is gone.

    ``name`` is unique among hosts that share a database.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.name = f"{socket.gethostname()}:{folder.resolve()}:{device}"
        self._path = folder / f"{device.replace(':', '-').replace('/', '-')}.lock"
        self._descriptor: int | None = None

    def take(self) -> None:
        """Raises SlotTaken."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SlotTaken(f"another worker already holds the device {self._path.stem}") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def leave(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def device_name() -> str:
    """The device this process is pinned to, by what its environment says; the executor is who looks."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if visible in ("", "-1"):
        return "gpu-default" if Path("/dev/nvidiactl").exists() and visible == "" else "cpu"
    return f"gpu-{visible}"
