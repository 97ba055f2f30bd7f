"""``python -m tests.worker.small_device``: the studio's worker on a device whose memory holds eight rows of a batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.handlers import Workshop
from worker.ml.conditioning import Conditioning
from worker.ml.families import DiffusionModel
from worker.model_cache import ModelCache

ROWS = 8


class SmallDevice:
    """A base model whose denoiser refuses larger batches as a full device does."""

    def __init__(self, model: DiffusionModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if len(noisy) > ROWS:
            raise torch.OutOfMemoryError("the device's memory is full")
        return self._model.predict(noisy, timesteps, conditioning)


class SmallCache(ModelCache):
    def get(self, folder: Path) -> DiffusionModel:
        return SmallDevice(super().get(folder))


def handlers() -> Workshop:
    """What ``worker.executor`` asks this module for."""
    shop = Workshop()
    shop._models = SmallCache()
    return shop


if __name__ == "__main__":
    from worker.__main__ import main
    from worker.supervisor import Trade

    sys.exit(main(Trade("tests.worker.small_device", {"train": 1, "generate": 1})))
