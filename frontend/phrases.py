"""Numbers as a person says them: every one with its unit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

JOB_STATES = {
    "blocked": "waits for another job",
    "queued": "waiting",
    "running": "running",
    "succeeded": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}
JOB_KINDS = {
    "train": "Training",
    "merge": "Merge",
    "compress": "Compression",
    "generate": "Pictures",
    "evaluate": "Evaluation",
    "export": "Export",
}


def duration(seconds: float | None) -> str:
    """About how long: ``40 s``, ``2 min``, ``1 h 20 min``."""
    if seconds is None:
        return "unknown"
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return "unknown"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"


def ago(moment: datetime) -> str:
    """How long since, in the coarsest unit that says something."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if seconds < 60:
        return "just now"
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 photo``, ``3 photos``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def state(name: str) -> str:
    return JOB_STATES.get(name, name)


def kind(name: str) -> str:
    return JOB_KINDS.get(name, name.capitalize())


FILTERS: dict[str, Callable[..., Any]] = {
    "duration": duration,
    "size": size,
    "ago": ago,
    "count": count,
    "percent": percent,
    "state": state,
    "kind": kind,
}
