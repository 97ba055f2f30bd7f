"""The resident base model: loaded once, kept until another is asked for."""

from __future__ import annotations

from pathlib import Path

from worker import device
from worker.ml.families import DiffusionModel, load_base


class ModelCache:
    """Holds one model. Jobs never change its weights, so they may share it one after another.

    ``cache_dir``: where models keep what is dear to derive from them.
    """

    def __init__(self) -> None:
        self.cache_dir: Path | None = None
        self._folder: Path | None = None
        self._model: DiffusionModel | None = None

    def get(self, folder: Path) -> DiffusionModel:
        """The loaded base model of ``folder``. Raises BaseUnusable, OutOfMemoryError."""
        if self._model is None or self._folder != folder:
            self._model = self._folder = None
            device.empty_cache()
            self._model = load_base(folder, device.torch_name(), cache_dir=self.cache_dir)
            self._folder = folder
        return self._model
