"""Where the prior term of a method comes from (methods.md 2, 4): a parameter that all such methods share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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

DRAWN: dict[str, Any] = {"prior_images": 200, "prior_steps": 50}
"""Class images of a Stable Diffusion preset: as many as diffusers' scripts and Custom Diffusion's baselines draw, with
as many solver steps (methods.md 2, 4).
"""
FEW_DRAWN: dict[str, Any] = {"prior_images": 100, "prior_steps": 25}
"""Those of a Quick one: drawn in a quarter of the time."""
