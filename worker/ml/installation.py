"""Weight-side concepts: the model's own parameters are others for as long as a concept is used (design 1, ADR 6).

The base model's tensors are never written. `replaced` puts *other* parameters into their places and afterwards the
very same ones back, so that removing a concept is exact to the bit by construction, whatever happened in between.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from worker.ml.conditioning import MatrixChange

if TYPE_CHECKING:
    from worker.ml.families.base import DiffusionModel


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """What a weight-side concept *is*, beside its words: a change for each parameter, by name.

    ``denoiser`` and ``text_encoder`` name parameters as ``named_parameters()`` of the module does
    ("conv_in.weight"). Two edits add: ``W + s_1 dW_1 + s_2 dW_2``.
    """

    denoiser: Mapping[str, MatrixChange] = field(default_factory=dict)
    text_encoder: Mapping[str, MatrixChange] = field(default_factory=dict)


EXCHANGED = ("_parameters", "_forward_hooks", "_forward_pre_hooks")
"""Where a module holds all that `replaced`, `added` and their like put into it."""

Installation = tuple[tuple[WeightEdit, float], ...]
"""Edits with their scales. Rows of one batch of the denoiser share it: they are grouped by it."""


@contextmanager
def installed(model: DiffusionModel, edits: Installation) -> Iterator[None]:
    """While open, every parameter is ``W + sum of s_i dW_i``, in the dtype of W; no gradient. Scale 0 is the base
    model, to the bit.
    """
    with Prepared(model, edits).in_place():
        yield


class Prepared:
    """An installation whose parameters are computed once, from what the model holds now, and put in place as often as
    one likes.
    """

    def __init__(self, model: DiffusionModel, edits: Installation) -> None:
        acting = [(edit, scale) for edit, scale in edits if scale != 0.0]
        parts = (
            (model.denoiser, [(edit.denoiser, scale) for edit, scale in acting]),
            (model.text_encoder, [(edit.text_encoder, scale) for edit, scale in acting]),
        )
        self._tensors = [(module, _summed(module, part)) for module, part in parts]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, the parameters are these; all others are as they are now."""
        with ExitStack() as stack:
            for module, tensors in self._tensors:
                stack.enter_context(replaced(module, tensors))
            yield


@torch.no_grad()
def _summed(
    module: torch.nn.Module, parts: Sequence[tuple[Mapping[str, MatrixChange], float]]
) -> dict[str, Tensor]:
    summed: dict[str, Tensor] = {}
    for changes, scale in parts:
        for name, change in changes.items():
            before = summed.get(name, module.get_parameter(name))
            dense = change.dense().to(before.device)
            summed[name] = (before.float() + scale * dense.float()).to(before.dtype)
    return summed


class Untouched:
    """The parameters and hooks of modules as they are now, to be looked at again while something is installed."""

    def __init__(self, *roots: torch.nn.Module) -> None:
        self._held = [
            (module, {kind: copy.copy(vars(module)[kind]) for kind in EXCHANGED})
            for root in roots
            for module in root.modules()
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, the modules are as they were when this was made; afterwards as they were before. No gradient."""
        installed_now = [{kind: vars(module)[kind] for kind in EXCHANGED} for module, _ in self._held]
        try:
            for module, held in self._held:
                vars(module).update(held)
            with torch.no_grad():
                yield
        finally:
            for (module, _), now in zip(self._held, installed_now, strict=True):
                vars(module).update(now)


@contextmanager
def added(changes: Mapping[torch.nn.Module, tuple[Tensor, Tensor | None]]) -> Iterator[None]:
    """While open, each Linear's output is ``W x + b + (dW x + db)``, differentiable in dW [o, d] and db [o]; then as
    before. For changes that are being trained: what is trained is the change, so a decay pulls towards the base model.
    """

    def hook(change: tuple[Tensor, Tensor | None]) -> Any:
        def add(_: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            weight, bias = change
            return output + functional.linear(arguments[0].to(weight.dtype), weight, bias).to(output.dtype)

        return add

    handles = [module.register_forward_hook(hook(change)) for module, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, the parameters of ``module`` with these names are ``tensors``; afterwards the objects that were
    there before. A tensor that is an ``nn.Parameter`` is used itself and may require a gradient.
    """
    kept: list[tuple[torch.nn.Module, str, torch.nn.Parameter | None]] = []
    try:
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            kept.append((owner, leaf, owner._parameters[leaf]))
            if isinstance(tensor, torch.nn.Parameter):
                owner._parameters[leaf] = tensor
            else:
                owner._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
        yield
    finally:
        for owner, leaf, before in reversed(kept):
            owner._parameters[leaf] = before
