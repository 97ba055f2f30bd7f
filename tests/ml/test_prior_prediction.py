"""Prior prediction: the base model's own prediction on the prior captions as a target, without images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ml.teaching import everything, prepare, same, stark
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun
from worker.ml.streams import rng
from worker.ml.training.gradients import HALVES
from worker.ml.training.loop import Progress, advance

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("custom-diffusion", {}),
    ("custom-diffusion", {"train": "crossattn"}),
    ("lora", {"prior_weight": 1.0, "text_encoder": True, "text_learning_rate": 0.01}),
    ("svdiff", {"prior_weight": 1.0}),
    ("dreambooth", {"text_encoder": True, "text_learning_rate": 0.01}),
]
RATES = {"dreambooth": {"learning_rate": 0.001}, "svdiff": {"learning_rate": 0.05}}


@pytest.mark.parametrize(("method", "params"), METHODS, ids=[f"{m}{'-'.join(['', *p])}" for m, p in METHODS])
def test_the_target_is_the_untouched_models_own_prediction_at_any_step(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, method: str, params: dict[str, Any]
) -> None:
    """At the start the prior term and its gradient vanish (methods.md 2, test iii); later it is the mean squared
    distance from what the model predicted before anything was installed.
    """
    rates = RATES.get(method, {"learning_rate": 0.01, "token_learning_rate": 0.01})
    trainee = prepare(
        model, [stark(photos)], tmp_path, method=method, prior="prediction", **{**rates, **params}
    )
    assert not list(tmp_path.iterdir())
    before = everything(model)
    own = []
    for step in range(2):
        rows = trainee.rows(step)
        x_t, t, _ = model.noised(rows.latents, rng(trainee.seed, "noise", step))
        assert sum(rows.prior) == 2
        texts = [rows.prompts[place].text for place in rows.prompt_of_row]
        assert all("<" not in text for text, is_prior in zip(texts, rows.prior, strict=True) if is_prior)
        with torch.no_grad():
            own.append(model.predict(x_t[2:], t[2:], text_kv(model, [Prompt(text) for text in texts[2:]])))
    with trainee.installed():
        progress = Progress(trainee)
        first = advance(model, [progress], InProcessRun())[0]
        assert first.prior is not None
        assert first.prior.item() < 1e-9
        rows = trainee.rows(1)
        x_t, t, _ = model.noised(rows.latents, rng(trainee.seed, "noise", 1))
        with torch.no_grad():
            moved = model.predict(
                x_t[2:],
                t[2:],
                text_kv(model, [rows.prompts[place] for place in rows.prompt_of_row[2:]]),
            )
        second = advance(model, [progress], InProcessRun())[0]
    assert second.prior is not None
    expected = (moved - own[1]).square().mean()
    assert expected > 1e-8
    torch.testing.assert_close(second.prior, expected, rtol=1e-3, atol=0.0)
    assert same(before, everything(model))


def test_halves_of_a_batch_give_the_same_gradients(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    gradients = []
    for parts in (1, HALVES):
        trainee = prepare(
            model, [stark(photos)], tmp_path, prior="prediction", learning_rate=0.01, max_grad_norm=100.0
        )
        progress = Progress(trainee)
        advance(model, [progress], InProcessRun())
        progress.parts = parts
        advance(model, [progress], InProcessRun())
        gradients.append({name: tensor.grad for name, tensor in progress.tensors.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", ["custom-diffusion", "lora", "dreambooth", "svdiff"])
def test_none_is_none_whatever_lambda(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, method: str
) -> None:
    trainee = prepare(model, [stark(photos)], tmp_path, method=method, prior="none", prior_weight=1.0)
    assert not any(trainee.rows(0).prior)
    assert not list(tmp_path.iterdir())
