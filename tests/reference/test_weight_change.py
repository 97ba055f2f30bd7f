"""Weight-change analysis, against numpy and float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from backend.schemas.weights import WeightsAnalysis
from tests.ml.teaching import stark, teach
from worker.ml.analysis import weight_change
from worker.ml.conditioning import MatrixChange
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS
from worker.ml.singular_values import of_matrix, of_product

Arrays = dict[str, np.ndarray]


def group_of(path: str) -> str:
    parts = path.split(".")
    return "cross-attention" if "attn2" in parts else "self-attention" if "attn1" in parts else "rest"


def assert_groups(
    found: WeightsAnalysis, base: dict[str, Arrays], change: dict[str, Arrays], rtol: float = 1e-9
) -> None:
    """Means by tensor and by module over all parameters: ``base`` and ``change`` by group and path."""
    groups = {each.group: each for each in found.groups}
    for group, parameters in base.items():
        norms = {path: np.linalg.norm(each) for path, each in parameters.items()}
        sizes = {path: np.linalg.norm(change[group].get(path, np.zeros(1))) for path in parameters}
        counted = [path for path in parameters if norms[path] >= 1e-6]
        ratios = [sizes[path] / norms[path] for path in counted]
        modules = sorted({path.rpartition(".")[0] for path in counted})
        pooled = [
            np.sqrt(sum(sizes[p] ** 2 for p in counted if p.rpartition(".")[0] == module))
            / np.sqrt(sum(norms[p] ** 2 for p in counted if p.rpartition(".")[0] == module))
            for module in modules
        ]
        each = groups[group]  # type: ignore[index]
        np.testing.assert_allclose(each.mean, np.mean(ratios), rtol=rtol, atol=1e-15)
        np.testing.assert_allclose(each.median, np.median(ratios), rtol=rtol, atol=1e-15)
        np.testing.assert_allclose(each.pooled_mean, np.mean(pooled), rtol=rtol, atol=1e-15)


def arrays(model: DiffusionModel) -> dict[str, Arrays]:
    """Parameters in float64 by group and path; the encoder's without its table of words."""
    found: dict[str, Arrays] = {"text-encoder": {}}
    for path, parameter in model.denoiser.named_parameters():
        found.setdefault(group_of(path), {})[path] = parameter.detach().double().numpy()
    for path, parameter in model.text_encoder.named_parameters():
        if "token_embedding" not in path:
            found["text-encoder"][path] = parameter.detach().double().numpy()
    return found


def test_ratios_spectra_and_means(model: DiffusionModel, photos: list[Path], tmp_path: Path) -> None:
    weights = teach(model, [stark(photos)], tmp_path, learning_rate=0.01)
    found, base = weight_change(model, weights), arrays(model)
    deltas = {
        f"{site}.weight": parts["delta"].double().numpy() for site, parts in weights.site_parts().items()
    }
    assert_groups(found, base, dict.fromkeys(base, deltas))
    for change in found.sites:
        delta = deltas[f"{change.site}.weight"]
        eigen = np.linalg.svd(delta, compute_uv=False) ** 2
        np.testing.assert_allclose(np.square(change.singular_values), eigen, atol=1e-9 * eigen[0])
        np.testing.assert_allclose(change.energy_by_rank, eigen.cumsum() / eigen.sum(), atol=1e-9)
        ratio = np.linalg.norm(delta) / np.linalg.norm(base["cross-attention"][f"{change.site}.weight"])
        np.testing.assert_allclose(change.relative_change, ratio, rtol=1e-9)
    row = weights.tensors["token.stark.learned"].double() - weights.tensors["token.stark.start"].double()
    expected_change = row.norm() / weights.tensors["token.stark.start"].double().norm()
    np.testing.assert_allclose(found.token_change["stark"], expected_change.item(), rtol=1e-9)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("dreambooth", {"text_encoder": True, "learning_rate": 1e-4, "text_learning_rate": 1e-4}),
        ("lora", {"text_encoder": True, "convolution": True, "learning_rate": 1e-2}),
        ("svdiff", {"text_encoder": True, "learning_rate": 1e-2, "gain_learning_rate": 1e-3}),
    ],
)
def test_weight_side_methods(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, method: str, params: dict[str, object]
) -> None:
    """Biases, norms and the text encoder too; from factors and shifts the same as from the dense change."""
    weights = teach(model, [stark(photos)], tmp_path, method=method, steps=3, **params)
    installation = METHODS[method].installation(model, weights)
    assert installation is not None

    def dense(changes: dict[str, MatrixChange]) -> Arrays:
        return {path: change.dense().detach().double().numpy() for path, change in changes.items()}

    denoiser, encoder = dense(dict(installation.denoiser)), dense(dict(installation.text_encoder))
    found, base = weight_change(model, weights), arrays(model)
    change = {group: encoder if group == "text-encoder" else denoiser for group in base}
    assert_groups(found, base, change, rtol=1e-5)  # dense() rounds to single precision
    listed = {site.site: site for site in found.sites}
    assert len(listed) == len({path.rpartition(".")[0] for path in (*denoiser, *encoder)})
    for path, delta in (denoiser | encoder).items():
        site = listed[path.rpartition(".")[0].removeprefix("text_model.")]
        if path.endswith(".weight") and delta.ndim > 1:
            values = np.linalg.svd(delta.reshape(len(delta), -1), compute_uv=False)[
                : len(site.singular_values)
            ]
            assert len(site.singular_values) >= min(4, *delta.shape[:2])
            np.testing.assert_allclose(site.singular_values, values, atol=2e-6 * values[0])


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_values_of_a_dense_matrix_over_six_decades(shape: tuple[int, int]) -> None:
    """Gram against numpy's decomposition: relative to each value, down to 1e-6 of the largest."""
    draw = np.random.default_rng(0)
    left, right = (np.linalg.qr(draw.standard_normal((side, 40)))[0] for side in shape)
    matrix = left @ np.diag(np.logspace(-3, -9, 40)) @ right.T
    found = of_matrix(torch.from_numpy(matrix)).numpy()
    np.testing.assert_allclose(found, np.linalg.svd(matrix, compute_uv=False), rtol=1e-3)
    np.testing.assert_allclose(found[:20], np.logspace(-3, -9, 40)[:20], rtol=1e-8)


def test_values_of_changes_whose_squares_vanish_and_of_none() -> None:
    tiny = np.random.default_rng(1).standard_normal((6, 9)) * 1e-200
    found = of_matrix(torch.from_numpy(tiny)).numpy()
    np.testing.assert_allclose(found, np.linalg.svd(tiny, compute_uv=False), rtol=1e-9)
    assert of_matrix(torch.zeros(6, 9)).tolist() == [0.0] * 6


def test_values_of_a_product_of_factors() -> None:
    draw = np.random.default_rng(2)
    up, down = draw.standard_normal((30, 4)), draw.standard_normal((4, 70))
    found = of_product(torch.from_numpy(up), torch.from_numpy(down)).numpy()
    np.testing.assert_allclose(found, np.linalg.svd(up @ down, compute_uv=False)[:4], rtol=1e-12)
