"""UUIDv7: ids that sort by creation time (RFC 9562, 5.7), strictly increasing within a process."""

from __future__ import annotations

import os
import threading
import time
import uuid

_TICK_NS = 244
"""A 4096th of a millisecond: twelve bits of the id are the fraction of its millisecond."""


class _Clock:
    """Ticks that never stand still or go back, whatever the wall clock does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def tick(self) -> int:
        with self._lock:
            self._last = max(time.time_ns() // _TICK_NS, self._last + 1)
            return self._last


_clock = _Clock()


def new_id() -> str:
    """A fresh id: 48 bits of milliseconds, 12 bits of their fraction, 62 random bits."""
    milliseconds, fraction_ns = divmod(_clock.tick() * _TICK_NS, 1_000_000)
    value = (milliseconds & (2**48 - 1)) << 80 | 7 << 76 | (fraction_ns // (_TICK_NS + 1)) << 64
    value |= 0b10 << 62 | int.from_bytes(os.urandom(8)) >> 2
    return str(uuid.UUID(int=value))
