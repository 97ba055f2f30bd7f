"""Weight-decomposed changes (DoRA, Liu et al., ICML 2024, arXiv 2402.09353, section 4).

A weight is the lengths of its rows times their directions. LoRA turns the directions, and the lengths are learned by
themselves: ``W' = m (W + dW) / |W + dW|``, row by row. ``dW`` is low-rank; ``m`` [out] is the learned length of each
row (of each output channel, for a convolution), held as its difference from the base's, so that 0 is the base and a
decay pulls towards it. As peft has it, a row belongs to an output, and the norm ``|W + dW|`` counts as a constant in
the backward pass (section 4.3 of the paper).

So the change of the matrix is ``(g - 1) W + g dW`` with the gain ``g = m / |W + dW|``: of full rank, but made of few
numbers and of the base's own weight, which it refers to and never writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worker.ml.low_rank import LowRankChange

TINY = 1e-12
"""A row that is shorter has no direction; it counts as this long."""


@dataclass(frozen=True, eq=False)
class DecomposedChange:
    """``direction`` is ``dW`` and ``magnitude`` [out] the difference of ``m`` from the lengths of ``base``'s rows.
    ``base`` is the frozen weight itself, [out, in] or [out, in, kh, kw].
    """

    direction: LowRankChange
    magnitude: Tensor
    base: Tensor

    def gain(self) -> Tensor:
        """``g`` [out], fp32; differentiable in ``magnitude`` alone, and exactly 1 while nothing was learned."""
        with torch.no_grad():
            base = self.base.to(self.magnitude.dtype)
            before, after = row_lengths(base), row_lengths(base + self.direction.dense())
        return (before + self.magnitude) / after

    def dense(self) -> Tensor:
        """In the shape of the weight, differentiable in the factors and in ``magnitude``."""
        gain = along_rows(self.gain(), self.base.ndim)
        return (gain - 1) * self.base.to(gain.dtype) + gain * self.direction.dense()


def row_lengths(weight: Tensor) -> Tensor:
    """Euclidean length of each row, [out], at least `TINY`."""
    lengths: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return lengths.clamp(min=TINY)


def along_rows(gain: Tensor, ndim: int) -> Tensor:
    """[out] -> [out, 1, ...] of ``ndim`` dimensions."""
    return gain.reshape(-1, *(1,) * (ndim - 1))


@contextmanager
def beside(layers: Mapping[torch.nn.Module, DecomposedChange]) -> Iterator[None]:
    """While open, each module's output is ``W x + b + (g - 1) W x + g dW x``; then as before. Nothing as large as the
    weight is kept for the backward pass.
    """
    handles = [module.register_forward_hook(_path(change)) for module, change in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _path(change: DecomposedChange) -> Any:
    low = change.direction

    def add(module: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        states, gain = arguments[0].to(low.down.dtype), change.gain()
        bias: Tensor | None = module._parameters.get("bias")
        if isinstance(module, torch.nn.Conv2d):
            narrow = functional.conv2d(states, low.down, None, module.stride, module.padding, module.dilation)
            turned = functional.conv2d(narrow, low.up)
            gain = along_rows(gain, 3)
            bias = bias if bias is None else along_rows(bias, 3)
        else:
            turned = functional.linear(functional.linear(states, low.down), low.up)
        plain = (output if bias is None else output - bias).to(gain.dtype)
        return output + ((gain - 1) * plain + gain * low.factor * turned).to(output.dtype)

    return add
