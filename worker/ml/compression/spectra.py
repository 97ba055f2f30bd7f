"""Singular values and vectors of a change, however it is held (methods.md 7).

A dense change [o, n] (convolutions as [o, i kh kw], biases and gains as [o, 1]) has its SVD. A factored one, ``f B A``
with B [o, r] and A [r, n], is never made dense: ``B = Q_b R_b`` and ``A^T = Q_a R_a`` give
``f B A = Q_b (f R_b R_a^T) Q_a^T``, so the SVD of an r x r matrix is enough. All in float64: half-precision SVD does
not exist on the CPU, and rounding noise has full rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.ml.conditioning import DenseChange
from worker.ml.low_rank import LowRankChange

Change = DenseChange | LowRankChange


def singular_values(change: Change) -> Tensor:
    """[min(o, n)] of a dense change, at most [r] of a factored one; largest first, float64."""
    matrix = _flat(change.matrix) if isinstance(change, DenseChange) else _core(change)[1]
    values: Tensor = torch.linalg.svdvals(matrix)
    return values


def leading(change: Change, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [o, rank], S [rank], Y^T [rank, n] of the largest singular values, float64: the best approximation of that
    rank is ``(U S) Y^T`` (Eckart and Young 1936).
    """
    if isinstance(change, DenseChange):
        left, values, right = torch.linalg.svd(_flat(change.matrix), full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    of_up, core, of_down = _core(change)
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    return of_up @ left[:, :rank], values[:rank], right[:rank] @ of_down.T


def changed_shape(change: Change) -> tuple[int, ...]:
    """Shape of the weight that is changed."""
    if isinstance(change, DenseChange):
        return tuple(change.matrix.shape)
    return (change.up.shape[0], *change.down.shape[1:])


def flat(change: Change) -> Tensor:
    """The change itself as [o, n], float64."""
    return _flat(change.dense())


def _flat(matrix: Tensor) -> Tensor:
    return matrix.detach().cpu().double().reshape(len(matrix), -1)


def _core(change: LowRankChange) -> tuple[Tensor, Tensor, Tensor]:
    of_up, up = torch.linalg.qr(_flat(change.up))
    of_down, down = torch.linalg.qr(_flat(change.down).T)
    return of_up, change.factor * up @ down.T, of_down
