"""Training of the denoiser for a budget of wall time, in one process or in several that average their
gradients.

State is one safetensors file (weights, their average, both moments of AdamW) and a line in the log; a run
that was interrupted goes on from there. What a scene may hold widens with the share of the budget that is
used up (`STAGES`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from worker.ml.toyworld.budget import Budget
from worker.ml.toyworld.denoiser import (
    Noise,
    SceneRing,
    denoising_loss,
    new_denoiser,
    new_scheduler,
    new_text_encoder,
)
from worker.ml.toyworld.gradient_exchange import GradientExchange
from worker.ml.toyworld.scenes import FIRST, SECOND, THIRD, Curriculum

BATCH = 8
FRESH = 3
LEARNING_RATE = 1e-3
AVERAGE_HALF_LIFE = 200
SAVE_EVERY = 250
STAGES: tuple[tuple[float, Curriculum], ...] = ((0.0, FIRST), (0.35, SECOND), (0.45, THIRD))


def stage_at(share: float) -> Curriculum:
    """The curriculum at a share of the budget."""
    return [stage for begin, stage in STAGES if share >= begin][-1]


class Learner(torch.nn.Module):
    """Text encoder and denoiser as one bag of parameters."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = new_text_encoder(tokenizer)
        self.denoiser = new_denoiser()


def train_denoiser(
    ring: SceneRing,
    folder: Path,
    budget: Budget,
    *,
    rank: int = 0,
    exchange: GradientExchange | None = None,
) -> Learner:
    """Train; ``folder/state.safetensors`` is written by rank 0. Returns the learner with the averaged
    weights. ``exchange`` connects the processes that train together.
    """
    processes = 1 if exchange is None else exchange.slots.shape[1]
    torch.manual_seed(0)
    learner = Learner(ring.tokenizer).to(ring.device)
    parameters = list(learner.parameters())
    average = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    if (folder / "state.safetensors").exists():
        _restore(learner, optimiser, average, folder)
    rng = np.random.default_rng([2, rank, budget.start_step])
    noise = Noise.of(new_scheduler())
    ring.add(rng, stage_at(budget.share), min(256, ring.capacity))
    smooth: float | None = None
    for step in budget.steps(endless=processes > 1):
        ring.add(rng, stage_at(budget.share), FRESH)
        latents, ids = ring.batch(rng, BATCH)
        loss = denoising_loss(learner.denoiser, learner.text_encoder, noise, latents, ids, rng=rng)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        over = budget.share >= 1.0
        if exchange is not None:
            over = exchange.average(parameters, over)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = budget.learning_rate(LEARNING_RATE)
        optimiser.step()
        keep = min(0.5 ** (1 / AVERAGE_HALF_LIFE), (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - keep)
        smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
        if rank == 0:
            budget.report(step, BATCH * processes, loss=smooth, share=budget.share)
            if step % SAVE_EVERY == SAVE_EVERY - 1:
                _save(learner, optimiser, average, folder)
        if over:
            break
    if rank == 0:
        _save(learner, optimiser, average, folder)
    for parameter, mean in zip(parameters, average, strict=True):
        parameter.data.copy_(mean)
    return learner


def _save(learner: Learner, optimiser: torch.optim.Optimizer, average: list[Tensor], folder: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for (name, parameter), mean in zip(learner.named_parameters(), average, strict=True):
        state = optimiser.state[parameter]
        tensors |= {f"raw.{name}": parameter.detach(), f"mean.{name}": mean}
        tensors |= {
            f"m.{name}": state["exp_avg"],
            f"v.{name}": state["exp_avg_sq"],
            f"t.{name}": state["step"].reshape(1),
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "state.tmp")
    (folder / "state.tmp").replace(folder / "state.safetensors")


def _restore(learner: Learner, optimiser: torch.optim.Optimizer, average: list[Tensor], folder: Path) -> None:
    tensors = load_file(folder / "state.safetensors")
    for (name, parameter), mean in zip(learner.named_parameters(), average, strict=True):
        parameter.data.copy_(tensors[f"raw.{name}"])
        mean.copy_(tensors[f"mean.{name}"])
        optimiser.state[parameter] = {
            "exp_avg": tensors[f"m.{name}"].to(parameter.device, copy=True),
            "exp_avg_sq": tensors[f"v.{name}"].to(parameter.device, copy=True),
            "step": tensors[f"t.{name}"].reshape(()).to(parameter.device, copy=True),
        }


def averaged_learner(tokenizer: CLIPTokenizer, folder: Path) -> Learner:
    """The averaged weights of the newest saved state."""
    learner = Learner(tokenizer)
    tensors = load_file(folder / "state.safetensors")
    for name, parameter in learner.named_parameters():
        parameter.data.copy_(tensors[f"mean.{name}"])
    return learner.eval()
