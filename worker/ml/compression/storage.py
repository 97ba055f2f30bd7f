"""What a cut change looks like in the file, and how many bytes that takes.

Factors share the singular values, ``up = U sqrt(S)`` and ``down = sqrt(S) Y^T``, so that both have numbers of one size
and half precision loses little of either. As 8-bit numbers each component k keeps the whole range of both vectors,
``q = round(127 v / max |v|)``, and one scale ``s_k max|u_k| max|y_k| / 127^2`` (stored_changes.py): a component is off
by at most half a step of its own size, where one scale for a matrix would lose the small components.

A change is left as it is in the file, in half where less than single precision is asked, where that takes no more room
than its factors: so a file never grows.
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
from worker.ml.compression.held import Held
from worker.ml.compression.spectra import Change, changed_shape, leading, singular_values
from worker.ml.low_rank import factor_shapes

TYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int8": torch.int8,
}
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8"}
LARGEST = 127


@dataclass(frozen=True, eq=False)
class Piece:
    """A change that can be cut: a matrix with its spectrum [R], or a vector, which is kept or dropped as a whole.

    ``own`` are its tensors by their names in the file, ``held`` reads them; ``site`` is what a report calls it.
    """

    site: str
    shape: tuple[int, ...]
    own: Mapping[str, Tensor]
    held: Held
    spectrum: NDArray[np.float64]
    options: Options
    ends_whole: bool
    """Whether the last option is the change as it is in the file."""

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
        match self.form(option):
            case "none":
                return {}
            case "whole":
                return {name: as_it_is(tensor, precision) for name, tensor in self.own.items()}
            case "factors":
                return self.held.named(factors(self.held.read(self.own), option, self.shape, precision))


def piece(
    site: str, own: Mapping[str, Tensor], held: Held, precision: Precision, largest_file_bytes: int
) -> Piece:
    """A change with what can be kept of it. ``largest_file_bytes`` bounds the file, and so the offsets in its
    header. Raises `WeightsInvalid`.
    """
    change = held.read(own)
    shape, values = changed_shape(change), singular_values(change).numpy()
    energies = np.concatenate([[0.0], np.cumsum(np.square(values))])
    sizes = np.zeros(1, np.int64)
    if len(shape) >= 2:
        sizes = factor_sizes(held, shape, len(values), precision, largest_file_bytes)
    kept = {name: as_it_is(tensor, precision) for name, tensor in own.items()}
    whole = _bytes(kept, largest_file_bytes)
    fewer = int(np.searchsorted(sizes, whole, side="left"))
    if ends_whole := fewer < len(sizes) or len(shape) < 2:
        sizes = np.append(sizes[:fewer], whole)
        energies = np.append(energies[:fewer], energies[-1])
    return Piece(site, shape, own, held, values, Options(sizes, energies), ends_whole)


def as_it_is(tensor: Tensor, precision: Precision) -> Tensor:
    """What stays as it was is stored in half where less than single precision is asked; a single number as it is."""
    if precision == "float32" or tensor.dtype.itemsize <= 2 or not tensor.ndim:
        return tensor
    return tensor.to(torch.float16)


def factor_sizes(
    held: Held, shape: Sequence[int], most: int, precision: Precision, largest_file_bytes: int
) -> NDArray[np.int64]:
    """Bytes of 0..``most`` components, with their entries in the header (at most)."""
    rank, dtype = max(1, most), TYPES[precision]
    down, up = factor_shapes(torch.empty(tuple(shape), device="meta"), rank)
    cut = {
        "down": torch.empty(down, dtype=dtype, device="meta"),
        "up": torch.empty(up, dtype=dtype, device="meta"),
    }
    each = (shape[0] + prod(shape[1:])) * dtype.itemsize
    if precision == "int8":
        cut["scale"] = torch.empty(rank, device="meta")
        each += torch.float32.itemsize
    head = _bytes(held.named(cut), largest_file_bytes) - each * rank
    return np.array([0, *(head + each * kept for kept in range(1, most + 1))], np.int64)


def _bytes(tensors: Mapping[str, Tensor], largest_file_bytes: int) -> int:
    """At most what they take in a file, entries in the header included."""
    return sum(
        tensor_bytes(name, NAMES[tensor.dtype], tensor.shape, largest_file_bytes)
        for name, tensor in tensors.items()
    )


def factors(change: Change, rank: int, shape: Sequence[int], precision: Precision) -> Mapping[str, Tensor]:
    """``down``, ``up`` and, for int8, ``scale`` of the best approximation of that rank."""
    left, values, right = leading(change, rank)
    shapes = factor_shapes(torch.empty(tuple(shape), device="meta"), rank)
    if precision != "int8":
        dtype, root = TYPES[precision], values.sqrt()
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
