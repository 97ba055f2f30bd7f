"""The table of families of base models, and how a folder becomes a loaded model.

Adding a family is a file with a ``load`` function and a row here (CONTRIBUTING, "add a base model").
"""

from __future__ import annotations

from pathlib import Path

import torch

from backend.schemas.bases import BaseDescription
from worker.ml.families import folder as _folder
from worker.ml.families import stable_diffusion
from worker.ml.families.base import DiffusionModel, Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("toyworld", "Toyworld", stable_diffusion.load, "small"),
        Family("sd15", "Stable Diffusion 1.x", stable_diffusion.load),
    )
}


def describe_base(folder: Path) -> BaseDescription:
    """What a worker registers of a folder; builds no model and loads no weights. Raises `BaseUnusable` with a
    sentence.
    """
    return _folder.describe(folder, {name: (each.methods, each.backbone) for name, each in FAMILIES.items()})


def load_base(
    folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32, cache_dir: Path | None = None
) -> DiffusionModel:
    """The loaded base model: safetensors only, offline, no remote code. ``cache_dir``: `DiffusionModel.cache_dir`.
    Raises `BaseUnusable`.
    """
    description = describe_base(folder)
    model = FAMILIES[description.family].load(folder, description, device, dtype)
    model.cache_dir = cache_dir
    return model


__all__ = ["FAMILIES", "DiffusionModel", "Family", "describe_base", "load_base"]
