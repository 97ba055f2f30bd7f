"""Where the prior term of a method comes from (methods.md 2, 4): a parameter that all such methods share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

PriorSource = Literal["generated", "prediction", "folder", "none"]

Prior = Annotated[
    PriorSource,
    Field(
        description=(
            "generated: class images by the base model; prediction: what the base model itself predicts, no images; "
            "folder: pictures with fitting captions from the administrator's folder; none: no prior term"
        )
    ),
]
