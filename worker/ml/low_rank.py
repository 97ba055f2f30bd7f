"""Low-rank changes ``dW = (alpha / r) B A`` of linear and convolution weights (Hu et al. 2022, section 4.1).

``A`` is called ``down``: [r, in] or [r, in, kh, kw]; ``B`` is called ``up``: [out, r] or [out, r, 1, 1]. For a
convolution ``dW = reshape(B (out x r) A (r x in kh kw))``: a convolution to r channels, then one of 1 x 1
(methods.md 8). Used and merged they are dense; trained they stay two thin layers beside the frozen one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worker.ml.singular_values import of_product


@dataclass(frozen=True, eq=False)
class LowRankChange:
    """``factor * B A`` in the shape of the weight it changes; ``factor`` is ``alpha / r``."""

    down: Tensor
    up: Tensor
    factor: float

    def dense(self) -> Tensor:
        """[out, in] or [out, in, kh, kw], differentiable in both."""
        product = self.up.flatten(1) @ self.down.flatten(1)
        return (self.factor * product).reshape(self.up.shape[0], *self.down.shape[1:])

    def singular_values(self) -> Tensor:
        """Of `dense` as a matrix [out, in kh kw]: the first r, float64, largest first; the rest are 0."""
        return abs(self.factor) * of_product(self.up.flatten(1), self.down.flatten(1))


def stacked(changes: Sequence[tuple[LowRankChange, float]]) -> LowRankChange:
    """``sum of s_n dW_n`` of changes of one weight as one change of their ranks together, ``[s_1 f_1 B_1 ...] [A_1;
    ...]`` in float64: the sum itself, not an approximation.
    """
    return LowRankChange(
        torch.cat([change.down.double() for change, _ in changes]),
        torch.cat([scale * change.factor * change.up.double() for change, scale in changes], dim=1),
        1.0,
    )


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """(out, in) of a linear weight, (out, in kh kw) of a convolution's: no change of it has a higher rank than
    the smaller.
    """
    return weight.shape[0], weight[0].numel()


def factor_shapes(weight: Tensor, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of ``down`` and ``up`` for a weight."""
    ones = (1,) * (weight.ndim - 2)
    return (rank, *weight.shape[1:]), (weight.shape[0], rank, *ones)


@contextmanager
def beside(layers: Mapping[torch.nn.Module, LowRankChange]) -> Iterator[None]:
    """While open, each module's output is ``W x + factor B (A x)``, differentiable in A and B; then as before."""
    handles = [module.register_forward_hook(_path(change)) for module, change in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _path(change: LowRankChange) -> Any:
    def add(module: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        states = arguments[0].to(change.down.dtype)
        if isinstance(module, torch.nn.Conv2d):
            narrow = functional.conv2d(
                states, change.down, None, module.stride, module.padding, module.dilation
            )
            wide = functional.conv2d(narrow, change.up)
        else:
            wide = functional.linear(functional.linear(states, change.down), change.up)
        return output + (change.factor * wide).to(output.dtype)

    return add
