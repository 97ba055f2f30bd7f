"""UUIDv7: ids that sort by creation time (RFC 9562, 5.7), strictly increasing within a process."""

from __future__ import annotations

import os
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """A fresh id; 48 bits of milliseconds, a 12-bit sub-millisecond counter, 62 random bits."""
    global _last
    with _lock:
        stamp = max(time.time_ns() // 244, _last + 1)  # 1 ms / 4096 = 244 ns
        _last = stamp
    milliseconds, fraction = divmod(stamp * 244, 1_000_000)
    value = (milliseconds & (2**48 - 1)) << 80 | 7 << 76 | (fraction // 245) << 64
    value |= 0b10 << 62 | int.from_bytes(os.urandom(8)) >> 2
    return str(uuid.UUID(int=value))
