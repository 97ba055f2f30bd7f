"""What linear layers of the denoiser read while pictures are drawn, as one triangular factor for each layer.

Only ``X X^T`` of a layer's inputs X matters to a merge (`worker.ml.soft_change`): inputs are folded by QR while they
come, so that no more than a few times their width is held of any layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from worker.ml.least_change import RunningTriangle


@contextmanager
def recorded_inputs(layers: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, RunningTriangle]]:
    """While open, every input [..., d] of each Linear is added to its triangle; then the modules are as before."""
    found = {name: RunningTriangle(layer.get_parameter("weight").shape[1]) for name, layer in layers.items()}

    def hook(triangle: RunningTriangle) -> Any:
        def record(_: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
            triangle.add(arguments[0].detach().flatten(0, -2))

        return record

    handles = [layer.register_forward_pre_hook(hook(found[name])) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
