"""Places where tests make a process die, stop, raise, sleep or find the disk full: ``fp("publish.after_rename")``.

Nothing happens unless ``MOONGATE_FAILPOINTS`` names the place, as in ``claim.after_commit=kill`` or
``publish.before_commit=sleep:2``. Imports the standard library only.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

_ACTIONS = ("kill", "stop", "raise", "sleep", "full")


class FailpointError(Exception):
    """What the action ``raise`` raises."""


def parse(text: str) -> dict[str, tuple[str, str]]:
    """``place=action[:argument]`` separated by semicolons. ValueError for an unknown action."""
    plan = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        place, _, rest = part.partition("=")
        action, _, argument = rest.partition(":")
        if action not in _ACTIONS:
            raise ValueError(f"unknown failpoint action in {part!r}")
        plan[place] = (action, argument)
    return plan


_PLAN = parse(os.environ.get("MOONGATE_FAILPOINTS", ""))


def _armed(place: str) -> None:
    planned = _PLAN.get(place)
    if planned is None:
        return
    action, argument = planned
    if action != "sleep" and argument:  # a file: whoever removes it is the one that dies, so it happens once
        try:
            Path(argument).unlink()
        except FileNotFoundError:
            return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "sleep":
        time.sleep(float(argument or 1))
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        raise FailpointError(place)


def _unarmed(place: str) -> None:
    return


fp = _armed if _PLAN else _unarmed
"""``fp(place)``: a no-op in every process whose environment names no failpoint."""
