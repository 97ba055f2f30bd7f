"""Custom Diffusion (Kumari et al., CVPR 2023, arXiv 2212.04488): keys, values and one word."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from backend.schemas.methods.card import MethodCard, Presets
from backend.schemas.methods.prior_source import DRAWN, FEW_DRAWN, Prior
from backend.schemas.methods.shared_parameters import (
    BatchSize,
    Collages,
    Companions,
    Flip,
    MaxGradNorm,
    PreviewEvery,
    PriorImages,
    PriorSteps,
    PriorWeight,
    UnmaskedWeight,
    UnmixWeight,
)
from backend.schemas.strict import Strict


class CustomDiffusionParams(Strict):
    """Hyper-parameters; the paper's values for SD 1.x stand in the descriptions (methods.md 4)."""

    train: Annotated[
        Literal["kv", "crossattn"],
        Field(
            description=(
                "kv: keys and values; crossattn: queries and outputs too, for faces with few photos, weight side"
            )
        ),
    ] = "kv"
    word: Annotated[
        Literal["placeholder", "class-noun"],
        Field(
            description=(
                "placeholder: a new word before the class noun; "
                "class-noun: the noun itself, where the base model lacks the category"
            )
        ),
    ] = "placeholder"
    steps: Annotated[int, Field(ge=1, le=20000, description="optimiser steps (paper: 250)")] = 250
    batch_size: BatchSize = 4
    learning_rate: Annotated[
        float, Field(gt=0, le=0.1, description="of the key and value matrices (paper: 8e-5 on SD 1.x)")
    ] = 2e-4
    token_learning_rate: Annotated[
        float, Field(gt=0, le=1.0, description="of the placeholder's vector V*")
    ] = 2e-3
    weight_decay: Annotated[
        float, Field(ge=0, le=1, description="AdamW decay of the matrices' change (paper: 1e-2)")
    ] = 0.01
    prior: Prior = "generated"
    prior_weight: PriorWeight = 1.0
    prior_images: PriorImages = 24
    prior_steps: PriorSteps = 12
    augment: Annotated[bool, Field(description="resize photos at random and say so in the caption")] = True
    flip: Flip = True
    unmasked_weight: UnmaskedWeight = 1.0
    collages: Collages = 0.0
    unmix_weight: UnmixWeight = 0.0
    companions: Companions = 0.0
    max_grad_norm: MaxGradNorm = 1.0
    preview_every: PreviewEvery = 50

    @field_validator("unmix_weight")
    @classmethod
    def _of_words(cls, weight: float, others: ValidationInfo) -> float:
        if weight > 0 and others.data.get("word") == "class-noun":
            raise ValueError(
                "Categories taught by their plain names have no word of their own, and are never part of a collage."
            )
        return weight

    @property
    def new_category(self) -> bool:
        """The class noun is what is taught: there is no V*."""
        return self.word == "class-noun"


TOGETHER = {"companions": 0.35, "unmasked_weight": 0.1}
SMALL: Presets = {
    "quick": {"steps": 150, "prior_images": 16, "prior_steps": 10},
    "balanced": {"steps": 300},
    "thorough": {"steps": 800, "prior_images": 48, "prior_steps": 20, "learning_rate": 1e-4},
    "together": {"steps": 300, **TOGETHER},
    "faces": {"train": "crossattn", "steps": 900, "learning_rate": 1e-4, "augment": False, "flip": False},
}
"""Together: Balanced, for a concept that shall share pictures with others (`benchmarks/results/pairs.md`).
Faces: all of the cross-attention, half the rate and three times the steps of the others, photos as they are.
"""
STABLE_DIFFUSION: Presets = {
    "quick": {"steps": 150, "learning_rate": 8e-5, "token_learning_rate": 8e-5, **FEW_DRAWN},
    "balanced": {"steps": 250, "learning_rate": 8e-5, "token_learning_rate": 8e-5, **DRAWN},
    "thorough": {"steps": 500, "learning_rate": 4e-5, "token_learning_rate": 4e-5, **DRAWN},
    "together": {
        "steps": 250,
        "learning_rate": 8e-5,
        "token_learning_rate": 8e-5,
        **TOGETHER,
        **DRAWN,
    },
    "faces": {
        "train": "crossattn",
        "steps": 750,
        "learning_rate": 4e-5,
        "token_learning_rate": 4e-5,
        "augment": False,
        "flip": False,
        **DRAWN,
    },
}
"""Balanced: the paper's 250 steps of four photos and four prior images, 1e-5 times the batch of eight (section 4).
Thorough: twice as long at half the rate, the authors' script for one GPU. Faces: theirs, 5e-6 times eight
(methods.md 4).
"""


def side(params: CustomDiffusionParams) -> Literal["text", "weights"]:
    """Only keys, values and the token change: text side; queries and outputs depend on the picture."""
    return "text" if params.train == "kv" else "weights"


CARD = MethodCard(
    name="custom-diffusion",
    title="Custom Diffusion",
    description=(
        "Learns a new word and the key and value matrices that read it; "
        "the safe choice for a subject you will place anywhere."
    ),
    source="Kumari et al., Multi-Concept Customization of Text-to-Image Diffusion, CVPR 2023 (arXiv 2212.04488)",
    min_photos=3,
    max_photos=50,
    params_type=CustomDiffusionParams,
    presets={"small": SMALL, "stable-diffusion": STABLE_DIFFUSION},
    side=side,
    needs=frozenset({"text-kv"}),
)
