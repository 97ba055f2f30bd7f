"""What forms, API and docs know of a merge, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from backend.schemas.strict import Strict

Takes = Literal["text-kv", "additive", "linear-layers", "lora", "svdiff", "perfusion"]
"""Which weights a merge can take: any on the text side and dense changes of keys and values of the others; any whose
changes add; of these, those that change linear layers alone; or those of one method alone.
"""


@dataclass(frozen=True)
class MergeCard:
    """One row of the table of merges. ``makes``: the side of the result; ``as-inputs`` where it is theirs. ``draws``:
    pictures are drawn for it, so that it waits for a device as a training does.
    """

    name: str
    title: str
    description: str
    source: str
    takes: Takes
    makes: Literal["text", "as-inputs"]
    params_type: type[BaseModel]
    draws: bool = False


class MergeMethodInfo(Strict):
    """``GET /merge-methods``."""

    name: str
    title: str
    description: str
    source: str
    takes: Takes
    makes: Literal["text", "as-inputs"]
    params: dict[str, Any]
