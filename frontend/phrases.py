"""Numbers as a person says them: every one with its unit."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.methods import CARDS

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
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
PHASES: dict[str, dict[str, Any]] = {
    "waiting": {"words": "Waiting", "begin": 0.0, "end": 0.0},
    "loading": {"words": "Getting the model ready", "begin": 0.0, "end": 0.0},
    "preparing": {
        "words": "Preparing photos and ordinary pictures to compare with",
        "begin": 0.0,
        "end": 0.25,
    },
    "training": {"words": "Training", "begin": 0.25, "end": 1.0},
    "calibrating": {"words": "Finding the scale that suits it"},
    "drawing": {"words": "Drawing", "begin": 0.0, "end": 1.0},
    "merging": {"words": "Merging", "begin": 0.0, "end": 1.0},
    "compressing": {"words": "Making it smaller", "begin": 0.0, "end": 1.0},
    "comparing": {"words": "Drawing pictures with both to compare them"},
    "saving": {"words": "Saving and measuring what has changed"},
}
"""Phases of the worker as a person reads them, and the part of the gate's ring that each one fills. A phase without
a part, which comes in between, leaves the ring as it is."""

UNCOUNTED = ("preparing", "saving")
"""Phases of several parts that each count from zero: the sentence does not count along, the ring does."""


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


def method(name: str) -> str:
    """The title of a method or merge: ``Custom Diffusion`` for ``custom-diffusion``; an unknown one by its name."""
    known = CARDS.get(name) or MERGE_CARDS.get(name)
    return known.title if known else name


def version(name: str, merge: str | None = None) -> str:
    """How weights were made: the title of the method, or of the merge."""
    if merge is None:
        return method(name)
    return f"Merge: {MERGE_CARDS[merge].title.lower() if merge in MERGE_CARDS else merge}"


def fine(share: float) -> str:
    """A share that may be very small: ``2.1 %``, ``0.04 %``, ``3 × 10⁻⁸``."""
    if share == 0:
        return "0"
    if abs(share) >= 5e-5:
        return f"{100 * share:.1f} %" if abs(share) >= 5e-3 else f"{100 * share:.2f} %"
    digits, _, power = f"{share:.0e}".partition("e")
    return f"{digits} × 10{str(int(power)).translate(_RAISED)}"


def with_article(noun: str) -> str:
    """``a dog``, ``an owl``."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def prompt(text: str) -> str:
    """The encoder's text as a person wrote it: ``<stark> dog`` as ``@stark dog``."""
    return re.sub(r"<([a-z][a-z0-9_-]*)>", r"@\1", text)


def phase(name: str) -> str:
    known = PHASES.get(name)
    return str(known["words"]) if known else name.replace("_", " ").capitalize()


def standing(name: str, step: int, total: int, eta_s: float | None) -> str:
    """One sentence: ``Training: step 240 of 600, about 40 s left``. The page's script builds the same."""
    words = phase(name)
    if not total:
        return words
    if name in UNCOUNTED:
        return words
    if name != "training":
        return f"{words}, {100 * step // total} %"
    left = f", about {duration(eta_s)} left" if eta_s is not None and step < total else ""
    return f"{words}: step {step} of {total}{left}"


def ring(name: str, step: int, total: int) -> float | None:
    """Share of the gate's ring, 0..1; None where the phase leaves it as it is."""
    part = PHASES.get(name, {})
    if "begin" not in part:
        return None
    done = step / total if total else 0.0
    return float(part["begin"] + (part["end"] - part["begin"]) * done)


def layer(site: str) -> str:
    """``down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k`` as ``down 1.0 cross keys``; ``merge``, which is
    what a closed-form merge changes everywhere at once, as ``all layers together``.
    """
    if site == "merge":
        return "all layers together"
    parts = site.removeprefix("site.").split(".")
    place = parts[0].removesuffix("_blocks").removesuffix("_block").replace("_", " ")
    numbers = ".".join([part for part in parts[1:] if part.isdigit()][:2])
    words = {"to_k": "keys", "to_v": "values", "to_q": "queries", "to_out": "output", "attn1": "self",
             "attn2": "cross"}  # fmt: skip
    attention = next((words[part] for part in parts if part in ("attn1", "attn2")), "")
    role = next((part for part in reversed(parts) if not part.isdigit()), "")
    said = [place, numbers, attention, words.get(role, role.replace("_", " ") if role != parts[0] else "")]
    return " ".join(filter(None, said))


FILTERS: dict[str, Callable[..., Any]] = {
    "duration": duration,
    "size": size,
    "ago": ago,
    "count": count,
    "with_article": with_article,
    "percent": percent,
    "fine": fine,
    "state": state,
    "kind": kind,
    "method": method,
    "layer": layer,
}
