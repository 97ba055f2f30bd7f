"""No process survives the one that started it: otherwise ``kill -9`` of a supervisor leaves a child holding the GPU."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send ``number`` to this process when ``parent``'s starting thread ends (Linux only).

    Exits at once when the parent has died already. Elsewhere the end of the pipe is the only sign.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
