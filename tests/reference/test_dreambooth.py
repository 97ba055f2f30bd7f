"""DreamBooth's objective, ``photos + lambda prior`` over all weights, by central differences in float64."""

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
RATE = 1e-4
PLACES = {
    "site.conv_in.delta": (3, 1, 2, 0),
    "site.conv_norm_out.delta": (5,),
    "site.time_embedding.linear_1.bias_delta": (7,),
    "site.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.delta": (2, 9),
    "site.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.delta": (11, 4),
    "site.up_blocks.1.resnets.0.conv1.delta": (1, 2, 1, 1),
    "encoder.encoder.layers.0.mlp.fc1.delta": (8, 3),
    "encoder.final_layer_norm.bias_delta": (6,),
    "token.stark.learned": (0, 5),
}


@pytest.fixture(scope="module")
def exact(tiny_folder: Path) -> DiffusionModel:
    return load_base(tiny_folder, dtype=torch.float64)


def test_gradient_and_first_step(exact: DiffusionModel, photos: list[Path], tmp_path: Path) -> None:
    """Of a convolution, a norm, a bias, both attentions, the text encoder and the word; then AdamW's first step
    without decay.
    """
    trainee = prepare(
        exact, [stark(photos)], tmp_path, method="dreambooth", text_encoder=True, prior_weight=LAMBDA,
        learning_rate=RATE, text_learning_rate=RATE, max_grad_norm=100.0,
    )  # fmt: skip
    rows = trainee.rows(0)
    x_t, t, target = exact.noised(rows.latents, rng(trainee.seed, "noise", 0))
    prior = np.array(rows.prior)
    assert prior.sum() == 2

    def loss() -> float:
        with torch.no_grad():
            conditioning = text_kv(exact, rows.prompts).rows(rows.prompt_of_row)
            predicted = exact.predict(x_t, t, conditioning)
        squared = ((target.double().numpy() - predicted.numpy()) ** 2).reshape(len(prior), -1).mean(axis=1)
        return float(squared[~prior].mean() + LAMBDA * squared[prior].mean())

    with trainee.installed():
        progress = Progress(trainee)
        slopes, starts = {}, {}
        for name, place in PLACES.items():
            tensor = progress.tensors[name]
            start = starts[name] = float(tensor[place])
            values = []
            for step in (1e-3, -1e-3):
                with torch.no_grad():
                    tensor[place] = start + step
                values.append(loss())
                with torch.no_grad():
                    tensor[place] = start
            slopes[name] = (values[0] - values[1]) / 2e-3
        advance(exact, [progress], InProcessRun())
    gradients = {name: tensor.grad for name, tensor in progress.tensors.items()}
    for name, place in PLACES.items():
        gradient = gradients[name]
        assert gradient is not None
        np.testing.assert_allclose(float(gradient[place]), slopes[name], rtol=5e-3, atol=1e-7)
        expected = starts[name] - RATE * slopes[name] / (abs(slopes[name]) + 1e-8)
        np.testing.assert_allclose(float(progress.tensors[name][place]), expected, atol=2e-3 * RATE)
