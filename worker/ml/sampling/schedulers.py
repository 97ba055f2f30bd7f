"""Solvers by name, built by diffusers from the base model's own schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from worker.ml.errors import InputInvalid

SCHEDULERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ddim": lambda config: DDIMScheduler.from_config(config),
    "dpmsolver++": lambda config: DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=True
    ),
    "euler": lambda config: EulerDiscreteScheduler.from_config(config),
    "unipc": lambda config: UniPCMultistepScheduler.from_config(config),
}
"""Same names as ``backend.schemas.generations.SCHEDULERS``. All deterministic given the first noise (DDIM with eta 0)."""


def build_scheduler(name: str, config: Mapping[str, Any], num_inference_steps: int) -> Any:
    """A fresh scheduler with its time steps set. ``prediction_type`` and betas come from ``config``."""
    if name not in SCHEDULERS:
        raise InputInvalid(f"There is no scheduler {name}.")
    scheduler = SCHEDULERS[name](dict(config))
    scheduler.set_timesteps(num_inference_steps)
    return scheduler
