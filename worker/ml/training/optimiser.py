"""AdamW over named groups, with a state that is plain tensors.

``torch.optim.AdamW``: beta (0.9, 0.999), eps 1e-8, decoupled decay (Loshchilov & Hutter 2019, algorithm 2).
Trained tensors are *changes*, so decay pulls towards the base model; in the reference code it pulls the
matrices themselves towards zero.

``adamw-8bit`` keeps both moments in eight bits, block by block (Dettmers et al. 2022, arXiv 2110.02861), by the package
bitsandbytes on a CUDA GPU; it is no dependency of ours.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from worker.ml.errors import MethodUnsupported
from worker.ml.training.trainee import Group, OptimiserName


def check_optimiser(name: OptimiserName, device: torch.device) -> None:
    """Raises `MethodUnsupported` where the device or the installation cannot run it."""
    if name == "adamw":
        return
    if device.type != "cuda":
        raise MethodUnsupported("8-bit Adam needs a CUDA GPU, and this worker has none. Choose adamw.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MethodUnsupported(
            "8-bit Adam needs the package bitsandbytes, which this worker does not have. Choose adamw."
        )


class NamedAdamW:
    """State keys: ``<tensor>/<part>``; the parts are ``step``, ``exp_avg``, ``exp_avg_sq``, and others in 8 bits."""

    def __init__(self, groups: Sequence[Group], name: OptimiserName = "adamw") -> None:
        self.groups = groups
        self.tensors = {key: tensor for group in groups for key, tensor in group.tensors.items()}
        self.in_eight_bits = name == "adamw-8bit"
        settings = [
            {
                "params": list(group.tensors.values()),
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ]
        self.torch_optimiser: torch.optim.Optimizer = (
            _eight_bit(settings) if self.in_eight_bits else torch.optim.AdamW(settings, fused=True)
        )

    def step(self, learning_rate_scale: float) -> None:
        """One update from the tensors' ``grad``, every group's learning rate times ``learning_rate_scale``."""
        for ours, theirs in zip(self.groups, self.torch_optimiser.param_groups, strict=True):
            theirs["lr"] = ours.learning_rate * learning_rate_scale
        self.torch_optimiser.step()

    def clear_gradients(self) -> None:
        self.torch_optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """A copy, on the CPU."""
        held = self.torch_optimiser.state
        return {
            f"{name}/{part}": torch.as_tensor(value).detach().cpu().clone()
            for name, tensor in self.tensors.items()
            for part, value in held.get(tensor, {}).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`; an empty mapping is a fresh optimiser."""
        held = self.torch_optimiser.state
        held.clear()
        for key, value in state.items():
            name, part = key.rsplit("/", 1)
            tensor = self.tensors[name]
            if part == "step":
                held[tensor][part] = int(value) if self.in_eight_bits else value.detach().clone().to("cpu")
            else:
                held[tensor][part] = value.detach().clone().to(tensor.device)


def _eight_bit(settings: Any) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = importlib.import_module("bitsandbytes.optim").AdamW8bit(settings)
    return made
