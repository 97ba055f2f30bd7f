"""Custom Diffusion on all of the cross-attention: the gradient of each change by central differences in float64.

The slow way folds the change into the base model's own parameter, ``W' = W + D``; training adds ``D x`` beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ml.teaching import prepare, stark
from worker.ml.conditioning import text_kv
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun
from worker.ml.streams import rng
from worker.ml.training.loop import Progress, advance

LAMBDA = 0.7
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
PLACES = {
    "to_q.weight": ("to_q.delta", (2, 9)),
    "to_out.0.weight": ("to_out.0.delta", (5, 1)),
    "to_out.0.bias": ("to_out.0.bias_delta", (6,)),
}


@pytest.fixture(scope="module")
def exact(tiny_folder: Path) -> DiffusionModel:
    return load_base(tiny_folder, dtype=torch.float64)


def test_gradients_of_queries_and_outputs(exact: DiffusionModel, photos: list[Path], tmp_path: Path) -> None:
    """``(1/|M|) sum_M (target - prediction)^2``, a mean over photos, plus lambda times one over prior images."""
    trainee = prepare(
        exact, [stark(photos)], tmp_path, train="crossattn", prior_weight=LAMBDA, max_grad_norm=100.0
    )
    rows = trainee.rows(0)
    x_t, t, target = exact.noised(rows.latents, rng(trainee.seed, "noise", 0))
    prior = np.array(rows.prior)
    masks = rows.masks.double().numpy()

    def loss() -> float:
        with torch.no_grad():
            conditioning = text_kv(exact, rows.prompts).rows(rows.prompt_of_row)
            predicted = exact.predict(x_t, t, conditioning)
        squared = (target.double().numpy() - predicted.numpy()) ** 2 * masks
        means = squared.sum(axis=(1, 2, 3)) / (masks.sum(axis=(1, 2, 3)) * squared.shape[1])
        return float(means[~prior].mean() + LAMBDA * means[prior].mean())

    before, slopes = loss(), {}
    for path, (_, place) in PLACES.items():
        parameter = exact.denoiser.get_parameter(f"{LAYER}.{path}")
        start, values = float(parameter[place]), []
        with torch.no_grad():
            for step in (1e-4, -1e-4):
                parameter[place] = start + step
                values.append(loss())
            parameter[place] = start
        slopes[path] = (values[0] - values[1]) / 2e-4
    with trainee.installed():
        progress = Progress(trainee)
        first = advance(exact, [progress], InProcessRun())[0].total.item()
    np.testing.assert_allclose(first, before, rtol=1e-6)
    for path, slope in slopes.items():
        part, place = PLACES[path]
        gradient = progress.tensors[f"site.{LAYER}.{part}"].grad
        assert gradient is not None
        np.testing.assert_allclose(float(gradient[place]), slope, rtol=1e-3, atol=1e-8)
