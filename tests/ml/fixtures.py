"""Fixtures of all tests that need a base model, photos or a trained concept: tiny, random, one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.ml.tiny_base import write_tiny_base
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def tiny_v_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny-v", "v_prediction", seed=1)


@pytest.fixture(scope="session")
def model(tiny_folder: Path) -> DiffusionModel:
    return load_base(tiny_folder)


@pytest.fixture(scope="session")
def v_model(tiny_v_folder: Path) -> DiffusionModel:
    return load_base(tiny_v_folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures of coloured squares, one upright, one wide, one tall."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for number, (width, height) in enumerate([(48, 48), (90, 60), (60, 80)]):
        pixels = np.full((height, width, 3), 40 * number, dtype=np.uint8)
        pixels[height // 4 : height // 2, width // 4 : 3 * width // 4] = (220, 40 + 60 * number, 30)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths
