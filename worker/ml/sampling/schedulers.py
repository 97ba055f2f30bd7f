"""Solvers by name, built by diffusers from the base model's own schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

SCHEDULERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ddim": DDIMScheduler.from_config,
    "dpmsolver++": lambda config: DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=True
    ),
    "euler": EulerDiscreteScheduler.from_config,
    "unipc": UniPCMultistepScheduler.from_config,
}
"""Same names as ``backend.schemas.generations.SCHEDULERS``. All deterministic given the first noise (DDIM
with eta 0).
"""


def build_scheduler(name: str, config: Mapping[str, Any], num_inference_steps: int) -> Any:
    """A fresh scheduler with its time steps set. ``prediction_type`` and betas come from ``config``.

    Raises `KeyError` for a name outside the table.
    """
    scheduler = SCHEDULERS[name](dict(config))
    scheduler.set_timesteps(num_inference_steps)
    return scheduler


def keep_rows(scheduler: Any, rows: Sequence[int]) -> None:
    """Multi-step solvers remember what was predicted before, [B, C, h, w] each: from now on only these rows."""

    def kept(value: Any) -> Any:
        return value[list(rows)] if isinstance(value, torch.Tensor) and value.ndim == 4 else value

    for name, value in vars(scheduler).items():
        setattr(scheduler, name, [kept(each) for each in value] if isinstance(value, list) else kept(value))
