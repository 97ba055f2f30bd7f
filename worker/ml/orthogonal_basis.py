"""One orthogonal basis that all concepts share, of which each has columns of its own (Orthogonal Adaptation, Po et al.,
CVPR 2024, arXiv 2312.02432; methods.md 13.2).

A change ``dW_i = A_i B_i^T`` whose ``B_i`` [d, r] is fixed beforehand sees of its input the part along its own columns
alone: with ``B_i^T B_j = 0`` the sum of changes of several concepts does to each one's columns what that concept
learned, ``(dW_i + dW_j) B_i = dW_i B_i``. d / r concepts fit into a layer that reads d numbers.

Column k comes of the first k + 1 columns of Gaussian numbers, drawn by seed, d and place, and orthonormal by QR: no
more of the basis is made than a concept needs. Departure: columns are given by their first one and are disjoint by
choice; the authors draw them at random, so that two of 20 of 768 share half a column on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from worker.ml.streams import rng


def basis_columns(width: int, first: int, count: int, seed: int) -> Tensor:
    """Columns ``first`` to ``first + count - 1`` of the basis of layers that read ``width`` numbers: [width, count],
    orthonormal, float64 on the CPU; the same to the bit each time.
    """
    drawn = [
        torch.randn(width, generator=rng(seed, f"orthogonal-basis/{width}", place), dtype=torch.float64)
        for place in range(first + count)
    ]
    orthonormal: Tensor = torch.linalg.qr(torch.stack(drawn, dim=1)).Q
    return orthonormal[:, first:].contiguous()


@dataclass(frozen=True)
class Columns:
    """Which columns weights were learned along. ``named``: what a sentence calls the weights."""

    named: str
    seed: int
    first: int
    count: int

    def apart(self, other: Columns) -> bool:
        """Whether none of them is the other's, of one basis."""
        before, after = sorted([self, other], key=lambda each: each.first)
        return self.seed == other.seed and before.first + before.count <= after.first


def column_notes(known: Sequence[Columns | None]) -> list[str]:
    """What a sum of weights should say of their columns; None for weights that have none. Nothing where none has."""
    columns = [each for each in known if each is not None]
    if not columns:
        return []
    shared = [(one, other) for one, other in combinations(columns, 2) if not one.apart(other)]
    if shared:
        return [
            f"The weights of {one.named} and {other.named} were learned along columns that they share, or of different "
            "bases, so that they disturb one another. Train one of them again with columns of its own."
            for one, other in shared
        ]
    if len(columns) < len(known):
        return [
            "Some of the weights were learned along columns of their own, the others along any directions."
        ]
    return [
        "All were learned along columns of their own: what a concept does there is untouched by the others, in every "
        "layer. What they do to the rest of its text and pictures was not measured."
    ]
