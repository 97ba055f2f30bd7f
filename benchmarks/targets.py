"""What is taught in a benchmark: held-out subjects of the sample photos, and a style that no training has seen.

The style is drawn by code over sample photos: a *blueprint*, pale lines where a picture changes on a blue ground.
Five photos of five subjects teach it, photos of the other five are the other true pictures of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from worker.ml.evaluation.measures import Target
from worker.ml.methods.base import ConceptExamples

BLUEPRINT = "blueprint"
GROUND, LINE = np.array([0.07, 0.20, 0.46], np.float32), np.array([0.88, 0.94, 1.0], np.float32)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
STYLE_SIDE_PX = 256


@dataclass(frozen=True)
class Taught:
    """A target with the photos that teach it and the other true photos of it."""

    slug: str
    class_noun: str
    kind: Literal["subject", "style"]
    photos: Sequence[Path]
    reference: Sequence[Path]

    @property
    def target(self) -> Target:
        """Its name in prompts."""
        return Target(self.slug, self.class_noun, self.kind)

    @property
    def examples(self) -> ConceptExamples:
        """The concept as a training takes it."""
        return ConceptExamples(self.slug, self.class_noun, self.kind, list(self.photos))


def listed(index: Path) -> list[Taught]:
    """All of a ``samples.json``."""
    entries: list[dict[str, Any]] = json.loads(index.read_text())["subjects"]
    return [
        Taught(
            one["slug"],
            one["class_noun"],
            "subject",
            *([index.parent / one["slug"] / name for name in one[role]] for role in ("train", "reference")),
        )
        for one in entries
    ]


def subjects(index: Path, nouns: Sequence[str]) -> list[Taught]:
    """Those of ``samples.json`` whose class the base knows: a new category has no base picture to compare with."""
    return [one for one in listed(index) if one.class_noun in nouns]


def blueprint_style(index: Path, nouns: Sequence[str], folder: Path) -> Taught:
    """The style's pictures are written to ``folder`` where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for one in subjects(index, nouns):
        file = folder / f"{one.slug}.png"
        if not file.exists():
            with Image.open(one.photos[0]) as opened:
                side = (STYLE_SIDE_PX, STYLE_SIDE_PX)
                picture = (
                    np.asarray(opened.convert("RGB").resize(side, Image.Resampling.BOX), np.float32) / 255
                )
            staged = file.with_suffix(".tmp")
            Image.fromarray((blueprint(picture) * 255).round().astype(np.uint8)).save(staged, "PNG")
            staged.replace(file)
        drawn.append(file)
    half = len(drawn) // 2
    return Taught(BLUEPRINT, "", "style", drawn[:half], drawn[half:])


def blueprint(picture: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """[S, S, 3] in [0, 1] in and out."""
    light = picture @ LUMA
    down, right = np.gradient(light)
    ink = np.clip(np.hypot(down, right) * 9 + 0.18 * (1 - light), 0, 1)[..., None]
    drawn: NDArray[np.float32] = (GROUND * (1 - ink) + LINE * ink).astype(np.float32)
    return drawn


def in_blueprint(pixels: Tensor) -> Tensor:
    """Pictures [n, 3, S, S] in [-1, 1] drawn as the style's pictures are: at their size, then made smaller again."""
    side = pixels.shape[-1]
    large = interpolate(pixels, size=(STYLE_SIDE_PX, STYLE_SIDE_PX), mode="bicubic").clamp(-1, 1)
    drawn = [blueprint((each.permute(1, 2, 0).numpy() + 1) / 2) for each in large]
    found = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) * 2 - 1
    return interpolate(found, size=(side, side), mode="area")
