"""Weight-change analysis, against numpy and float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.ml.teaching import stark, teach
from worker.ml.analysis import weight_change
from worker.ml.families.base import DiffusionModel


def test_ratios_spectra_and_means(model: DiffusionModel, photos: list[Path], tmp_path: Path) -> None:
    weights = teach(model, [stark(photos)], tmp_path, learning_rate=0.01)
    found = weight_change(model, weights)
    base = {name: p.detach().double().numpy() for name, p in model.denoiser.named_parameters() if p.ndim >= 2}
    ratios: dict[str, list[float]] = {"cross-attention": [], "self-attention": [], "rest": []}
    for name, matrix in base.items():
        site = name.removesuffix(".weight")
        group = "cross-attention" if ".attn2." in name else "self-attention" if ".attn1." in name else "rest"
        delta = weights.tensors.get(f"site.{site}.delta", torch.zeros(1)).double().numpy()
        ratios[group].append(float(np.sqrt((delta**2).sum()) / np.sqrt((matrix**2).sum())))
    for group, expected in ratios.items():
        np.testing.assert_allclose(found.mean_by_group[group], np.mean(expected), rtol=1e-9, atol=1e-15)
    for change in found.sites:
        delta = weights.tensors[f"site.{change.site}.delta"].double().numpy()
        eigen = np.sort(np.linalg.eigvalsh(delta.T @ delta))[::-1].clip(min=0)
        np.testing.assert_allclose(np.square(change.singular_values), eigen, atol=1e-9 * eigen[0])
        np.testing.assert_allclose(change.energy_by_rank, eigen.cumsum() / eigen.sum(), atol=1e-9)
        ratio = np.linalg.norm(delta) / np.linalg.norm(base[f"{change.site}.weight"])
        np.testing.assert_allclose(change.relative_change, ratio, rtol=1e-9)
    row = weights.tensors["token.stark.learned"].double() - weights.tensors["token.stark.start"].double()
    expected_change = row.norm() / weights.tensors["token.stark.start"].double().norm()
    np.testing.assert_allclose(found.token_change["stark"], expected_change.item(), rtol=1e-9)
