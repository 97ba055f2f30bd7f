"""Spectral shifts (Han et al., ICCV 2023, arXiv 2303.11305, section 3.2; methods.md 9).

``W' = U diag(relu(sigma + delta)) V^T``, used in the additive form ``W + U diag(relu(sigma + delta) - sigma) V^T``:
the same in exact arithmetic, and ``W`` to the bit at delta = 0. A gain of a norm is a diagonal matrix: its singular
values are the absolute values of its elements, ``w' = sign(w) relu(|w| + delta)``.

A change of a concept is scaled and summed as the change of the weight, not as delta: the same as
``relu(sigma + s_1 delta_1 + s_2 delta_2)`` (section 3.3) wherever no singular value reaches zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from worker.ml.spectra import Spectrum


@dataclass(frozen=True, eq=False)
class SpectralChange:
    """``delta`` [k] shifts the singular values of a weight of ``shape`` [o, i] or [o, i, kh, kw]."""

    spectrum: Spectrum
    delta: Tensor
    shape: tuple[int, ...]

    def growth(self) -> Tensor:
        """``relu(sigma + delta) - sigma``, [k]."""
        return shifted(self.spectrum.values, self.delta)

    def dense(self) -> Tensor:
        """In the shape of the weight, differentiable in delta."""
        return ((self.spectrum.left * self.growth()) @ self.spectrum.right).reshape(self.shape)

    def singular_values(self) -> Tensor:
        """Of `dense`, [k], float64, largest first: U and V are orthogonal, so they are the growths' sizes."""
        return self.growth().detach().double().abs().sort(descending=True).values


@dataclass(frozen=True, eq=False)
class GainChange:
    """``delta`` [n] shifts the size of every element of a norm's gain [n]."""

    gain: Tensor
    delta: Tensor

    def dense(self) -> Tensor:
        """[n], differentiable in delta."""
        sign = torch.where(self.gain < 0, -1.0, 1.0)
        return sign * shifted(self.gain.abs(), self.delta)


class WeightChange(Protocol):
    """A change that is trained where the weight stands."""

    def dense(self) -> Tensor: ...


def shifted(values: Tensor, delta: Tensor) -> Tensor:
    """``relu(sigma + delta) - sigma``; exactly 0 at delta = 0, and ``-sigma`` where the value dies."""
    return functional.relu(values + delta) - values


def checksum(values: Tensor) -> Tensor:
    """A weighted mean of singular values (of a gain: of its elements' sizes) that their order matters to; a scalar,
    fp32. Shifts belong to the values in whose order they were learned.
    """
    places = torch.arange(1, len(values) + 1, dtype=torch.float64)
    return ((values.detach().cpu().abs().double() * places).sum() / places.sum()).float()


@contextmanager
def in_place(changes: Mapping[torch.nn.Module, WeightChange]) -> Iterator[None]:
    """While open, each module computes with ``W + dW``, differentiable in delta; afterwards as before.

    Of two ways to the same output the cheaper is taken: ``dW`` is added to the weight for the call (o i k
    multiplications), or, where a call has few rows, as the deep convolutions of a large base, ``U (growth V^T x)`` to
    the output (rows (o + i) k).
    """
    handles: list[Any] = []
    try:
        for module, change in changes.items():
            before, after = _around(change)
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _around(change: WeightChange) -> tuple[Callable[..., None], Callable[..., Any]]:
    base: list[torch.nn.Parameter] = []

    def before(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(change, SpectralChange) and few_rows(module, arguments[0], change.shape):
            return
        weight = module.get_parameter("weight")
        base.append(weight)
        # a tensor that carries the gradient on, where a parameter stands for the length of the call
        module._parameters["weight"] = (weight + change.dense()).to(weight.dtype)  # type: ignore[assignment]

    def after(module: torch.nn.Module, arguments: tuple[Tensor, ...], output: Any) -> Any:
        if base:
            module._parameters["weight"] = base.pop()
            return output
        assert isinstance(change, SpectralChange)
        return output if output is None else output + beside(change, module, arguments[0]).to(output.dtype)

    return before, after


def few_rows(module: torch.nn.Module, states: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether ``rows (o + i) < o i`` for a linear layer's rows, or the places of a convolution's output."""
    rows = states.numel() // states.shape[-1]
    if isinstance(module, torch.nn.Conv2d):
        rows = len(states) * states[0, 0].numel() // (module.stride[0] * module.stride[1])
    out, inner = shape[0], torch.Size(shape[1:]).numel()
    return rows * (out + inner) < out * inner


def beside(change: SpectralChange, module: torch.nn.Module, states: Tensor) -> Tensor:
    """``U (growth V^T x)``: what `dense` would add to the module's output for ``states``."""
    left, right, growth = change.spectrum.left, change.spectrum.right, change.growth()
    states = states.to(right.dtype)
    if isinstance(module, torch.nn.Conv2d):
        kernel = right.reshape(len(right), *change.shape[1:])
        narrow = functional.conv2d(states, kernel, None, module.stride, module.padding, module.dilation)
        return functional.conv2d(narrow * growth[:, None, None], left[:, :, None, None])
    return functional.linear(functional.linear(states, right) * growth, left)
