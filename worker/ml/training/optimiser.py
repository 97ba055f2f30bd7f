"""AdamW over named groups, with a state that is plain tensors.

``torch.optim.AdamW``: beta (0.9, 0.999), eps 1e-8, decoupled decay (Loshchilov & Hutter 2019, algorithm 2).
Trained tensors are *changes*, so decay pulls towards the base model; in the reference code it pulls the
matrices themselves towards zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worker.ml.training.trainee import Group


class NamedAdamW:
    """State keys: ``<tensor>/<step | exp_avg | exp_avg_sq>``."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.tensors = {name: tensor for group in groups for name, tensor in group.tensors.items()}
        self.torch_optimiser = torch.optim.AdamW(
            [
                {
                    "params": list(group.tensors.values()),
                    "lr": group.learning_rate,
                    "weight_decay": group.weight_decay,
                }
                for group in groups
            ],
            fused=True,
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
            f"{name}/{part}": value.detach().cpu().clone()
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
            where = "cpu" if part == "step" else tensor.device
            held[tensor][part] = value.detach().clone().to(where)
