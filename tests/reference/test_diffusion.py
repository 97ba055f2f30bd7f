"""The forward process, its targets and one solver, against numpy and float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worker.ml.conditioning import Prompt, text_kv
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun
from worker.ml.sampling.latents import Picture, first_noise, sample_latents
from worker.ml.streams import rng

Array = NDArray[np.float64]


def kept_signal(config: Any) -> Array:
    """Cumulative product of 1 - beta of the scaled-linear schedule, [T]."""
    ends = np.sqrt(config["beta_start"]), np.sqrt(config["beta_end"])
    betas = np.linspace(*ends, config["num_train_timesteps"]) ** 2
    return np.cumprod(1 - betas)


@pytest.fixture(params=["model", "v_model"])
def either(request: pytest.FixtureRequest) -> DiffusionModel:
    found: DiffusionModel = request.getfixturevalue(request.param)
    return found


def test_the_schedule_is_the_configured_one(either: DiffusionModel) -> None:
    kept = kept_signal(either.scheduler_config)
    every = torch.arange(1000)
    np.testing.assert_allclose(either.signal_to_noise(every).numpy(), kept / (1 - kept), rtol=2e-3)


def test_noised_latents_and_targets(either: DiffusionModel) -> None:
    latents = torch.randn(6, 4, 8, 8)
    x_t, t, target = either.noised(latents, rng(1, "noise", 2))
    draw = rng(1, "noise", 2)
    noise = torch.randn(latents.shape, generator=draw).double().numpy()
    assert torch.equal(t, torch.randint(0, 1000, (6,), generator=draw))
    kept = kept_signal(either.scheduler_config)[t.numpy()].reshape(-1, 1, 1, 1)
    a, s, z = np.sqrt(kept), np.sqrt(1 - kept), latents.double().numpy()
    np.testing.assert_allclose(x_t.numpy(), a * z + s * noise, atol=2e-5)
    expected = noise if either.prediction_type == "epsilon" else a * noise - s * z
    np.testing.assert_allclose(target.numpy(), expected, atol=2e-5)


def test_time_steps_are_uniform(either: DiffusionModel) -> None:
    """1 600 draws in ten bins: chi-squared with nine degrees of freedom stays below its 0.999 quantile."""
    latents = torch.zeros(16, 1, 1, 1)
    t = torch.cat([either.noised(latents, rng(0, "noise", step))[1] for step in range(100)])
    counts = np.histogram(t.numpy(), bins=10, range=(0, 1000))[0]
    assert ((counts - 160) ** 2 / 160).sum() < 27.9


def test_ddim_with_guidance(either: DiffusionModel) -> None:
    """Song et al. 2021, eq. 12 with eta 0, step by step in float64; the network itself is the model's."""
    picture = Picture(Prompt("a dog"), Prompt("snow", negative=True), 5, 5, 4.0, "ddim", 32, 32)
    ((_, ours),) = sample_latents(either, [picture], InProcessRun(), "images")
    config = either.scheduler_config
    kept = kept_signal(config)
    stride = config["num_train_timesteps"] // picture.num_inference_steps
    times = (np.arange(picture.num_inference_steps) * stride)[::-1] + config["steps_offset"]
    texts = text_kv(either, [picture.negative, picture.prompt])
    x = first_noise(either, picture).double().numpy()
    for t in times:
        noisy = torch.tensor(np.stack([x, x]), dtype=torch.float32)
        with torch.no_grad():
            negative, positive = either.predict(noisy, torch.tensor([t, t]), texts).double().numpy()
        predicted = negative + picture.guidance_scale * (positive - negative)
        before = kept[t - stride] if t >= stride else kept[0]
        a, s = np.sqrt(kept[t]), np.sqrt(1 - kept[t])
        if either.prediction_type == "epsilon":
            noise, clean = predicted, (x - s * predicted) / a
        else:
            noise, clean = a * predicted + s * x, a * x - s * predicted
        x = np.sqrt(before) * clean + np.sqrt(1 - before) * noise
    np.testing.assert_allclose(ours.numpy(), x, atol=2e-4, rtol=1e-3)
