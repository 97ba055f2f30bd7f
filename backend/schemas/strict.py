"""The base of every schema: unknown fields are refused, values are never coerced silently."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints

Item = TypeVar("Item")

Id = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"),
]
"""A UUIDv7 in lower-case canonical form: sortable by creation time."""


class Strict(BaseModel):
    """Extra fields are an error (422 at the boundary); instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(Strict, Generic[Item]):
    """One page of a keyset-paginated list, newest first."""

    items: list[Item]
    next: str | None = None


__all__ = ["Id", "Page", "Strict", "datetime"]
