"""Gradient fusion (Gu et al., Mix-of-Show, NeurIPS 2023; methods.md 13.1)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backend.schemas.merges.card import MergeCard
from backend.schemas.strict import Strict


class GradientFusionParams(Strict):
    """On what the changes are fitted, and what holds them back."""

    steps: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="solver steps of the pictures during which layers are watched (paper: 20)",
        ),
    ] = 20
    ridge: Annotated[
        float, Field(gt=0, le=1, description="of the mean squared input of a layer; small: as the paper's")
    ] = 1e-6
    hold: Annotated[
        float,
        Field(
            ge=0,
            le=1e6,
            description="weight of captions that keys and values shall read as before, 1: as much as all words of the "
            "concepts together (paper: 0)",
        ),
    ] = 0.01
    captions: Annotated[int, Field(ge=10, le=20000, description="captions that are held and measured")] = 1000
    seed: Annotated[int, Field(ge=0, lt=2**31, description="of the pictures")] = 0


CARD = MergeCard(
    name="gradient-fusion",
    title="Gradient fusion",
    description=(
        "Fits every layer so that it makes of each concept's own text and pictures what the concept itself makes of "
        "them, as nearly as one layer can. Takes changes of any linear layers, also of the picture's side; draws a "
        "picture of each word to see what layers read."
    ),
    source=(
        "Gu et al., Mix-of-Show: Decentralized Low-Rank Adaptation for Multi-Concept Customization, NeurIPS 2023 "
        "(arXiv 2305.18292)"
    ),
    takes="linear-layers",
    makes="as-inputs",
    params_type=GradientFusionParams,
    draws=True,
)
