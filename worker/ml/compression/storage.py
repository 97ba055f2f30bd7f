"""What a cut change looks like in the file, and how many bytes that takes.

Factors share the singular values, ``up = U sqrt(S)`` and ``down = sqrt(S) Y^T``, so that both have numbers of one size
and half precision loses little of either. As 8-bit numbers each component k keeps the whole range of both vectors,
``q = round(127 v / max |v|)``, and one scale ``s_k max|u_k| max|y_k| / 127^2`` (stored_changes.py): a component is off
by at most half a step of its own size, where one scale for a matrix would lose the small components.

A matrix is written whole where that takes no more room than its factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.schemas.weights import Precision
from backend.schemas.weights_layout import tensor_bytes
from worker.ml.compression.allocation import Options
from worker.ml.compression.spectra import Change, changed_shape, leading, singular_values
from worker.ml.conditioning import DenseChange
from worker.ml.low_rank import factor_shapes

TYPES: dict[Precision, tuple[str, torch.dtype]] = {
    "float32": ("F32", torch.float32),
    "float16": ("F16", torch.float16),
    "int8": ("I8", torch.int8),
}
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
LARGEST = 127


@dataclass(frozen=True, eq=False)
class Piece:
    """A change that can be cut: a matrix with its spectrum [R], or a vector, which is kept or dropped as a whole.

    ``prefix`` is what its tensors' names begin with; ``part`` is the dense form's last word ("delta", "bias_delta").
    """

    prefix: str
    part: str
    shape: tuple[int, ...]
    change: Change
    spectrum: NDArray[np.float64]
    options: Options
    ends_whole: bool
    """Whether the last option is the matrix itself."""

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) >= 2

    @property
    def energy(self) -> float:
        return float(np.square(self.spectrum).sum())

    def form(self, option: int) -> Literal["whole", "factors", "none"]:
        """How it is written with this option."""
        if option == 0:
            return "none"
        return "whole" if self.ends_whole and option == self.options.last else "factors"

    def tensors(self, option: int, precision: Precision) -> dict[str, Tensor]:
        """By name in the file."""
        form = self.form(option)
        if form == "none":
            return {}
        if form == "whole":
            assert isinstance(self.change, DenseChange)
            matrix = self.change.matrix.detach().cpu()
            return {
                f"{self.prefix}.{self.part}": matrix.to(whole_dtype(matrix.dtype, precision)).contiguous()
            }
        return {f"{self.prefix}.{part}": tensor for part, tensor in
                factors(self.change, option, self.shape, precision).items()}  # fmt: skip


def piece(prefix: str, part: str, change: Change, precision: Precision, largest_file_bytes: int) -> Piece:
    """A change with what can be kept of it. ``largest_file_bytes`` bounds the file, and so the offsets in its
    header.
    """
    shape = changed_shape(change)
    dense = change.matrix if isinstance(change, DenseChange) else None
    if dense is not None and dense.ndim < 2:
        spectrum = torch.linalg.vector_norm(dense.double()).reshape(1)
    else:
        spectrum = singular_values(change)
    values = spectrum.numpy()
    energies = np.concatenate([[0.0], np.cumsum(np.square(values))])
    sizes = np.zeros(1, np.int64)
    if len(shape) >= 2:
        sizes = factor_sizes(prefix, shape, len(values), precision, largest_file_bytes)
    ends_whole = False
    if dense is not None:
        name = NAMES[whole_dtype(dense.dtype, precision)]
        whole = tensor_bytes(f"{prefix}.{part}", name, shape, largest_file_bytes)
        fewer = int(np.searchsorted(sizes, whole, side="left"))
        if ends_whole := fewer < len(sizes) or len(shape) < 2:
            sizes = np.append(sizes[:fewer], whole)
            energies = np.append(energies[:fewer], energies[-1])
    return Piece(prefix, part, shape, change, values, Options(sizes, energies), ends_whole)


def whole_dtype(now: torch.dtype, precision: Precision) -> torch.dtype:
    """A matrix that stays one is stored in half where less than single precision is asked; never wider than it was."""
    return now if now.itemsize == 2 or precision == "float32" else torch.float16


def factor_sizes(
    prefix: str, shape: Sequence[int], most: int, precision: Precision, largest_file_bytes: int
) -> NDArray[np.int64]:
    """Bytes of 0..``most`` components, with their entries in the header (at most)."""
    name, dtype = TYPES[precision]
    down, up = factor_shapes(torch.empty(tuple(shape), device="meta"), max(1, most))
    numbers = shape[0] + prod(shape[1:])
    entries = [(f"{prefix}.down", name, down), (f"{prefix}.up", name, up)]
    each = numbers * dtype.itemsize
    if precision == "int8":
        entries.append((f"{prefix}.scale", "F32", (max(1, most),)))
        each += torch.float32.itemsize
    whole = sum(tensor_bytes(*entry, largest_file_bytes) for entry in entries)
    head = whole - each * max(1, most)
    return np.array([0, *(head + each * rank for rank in range(1, most + 1))], np.int64)


def factors(change: Change, rank: int, shape: Sequence[int], precision: Precision) -> Mapping[str, Tensor]:
    """``down``, ``up`` and, for int8, ``scale`` of the best approximation of that rank."""
    left, values, right = leading(change, rank)
    shapes = factor_shapes(torch.empty(tuple(shape), device="meta"), rank)
    if precision != "int8":
        dtype, root = TYPES[precision][1], values.sqrt()
        cut = {"down": root[:, None] * right, "up": left * root}
        return {
            part: cut[part].reshape(into).to(dtype).contiguous()
            for part, into in zip(("down", "up"), shapes, strict=True)
        }
    tops = right.abs().amax(1), left.abs().amax(0)
    down, up = (LARGEST * right / tops[0][:, None]).round(), (LARGEST * left / tops[1]).round()
    return {
        "down": down.to(torch.int8).reshape(shapes[0]).contiguous(),
        "up": up.to(torch.int8).reshape(shapes[1]).contiguous(),
        "scale": (values * tops[0] * tops[1] / LARGEST**2).float(),
    }
