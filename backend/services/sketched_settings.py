"""What the sketches of weights assume that a merge may be asked to do otherwise, in words: they were made when the
weights were, with the usual settings of the closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from backend.schemas.merges.closed_form import ClosedFormParams

USUAL = ClosedFormParams()
SAID: dict[str, Callable[[Any], str]] = {
    "captions": lambda asked: f"{USUAL.captions} captions held, not the {asked} asked for",
    "ridge": lambda asked: f"a ridge of {USUAL.ridge:g}, not the {asked:g} asked for",
    "start_token": lambda _: "the start token held, which was not asked for",
    "padding": lambda asked: f"{USUAL.padding} paddings of each caption held, not the {asked} asked for",
    "prefix": lambda _: "the words before V* free, which were asked to be constrained",
    "company": lambda _: "each word by itself, not in company as asked for",
}


def notes(params: Mapping[str, Any], known: tuple[str, ...] = tuple(SAID)) -> list[str]:
    """A sentence where any of the ``known`` parameters is not what the sketches assume; parameters that are not given
    are as usual.
    """
    usual = USUAL.model_dump()
    differing = [name for name in known if params.get(name, usual[name]) != usual[name]]
    if not differing:
        return []
    told = [
        "Drift, condition, pinned and shared directions, and crosstalk are of the usual settings: "
        f"{'; '.join(SAID[name](params[name]) for name in differing)}."
    ]
    if "company" in differing:
        told.append("In company the merge pins more directions and moves other texts at least as far.")
    return [" ".join(told)]
