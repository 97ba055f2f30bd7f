"""The smallest change of a matrix that reads given text states as wished (Kumari et al., CVPR 2023, arXiv 2212.04488,
section 3.3; methods.md 6).

``min_D 1/2 ||D A^T||_F^2  subject to  D C^T = R``: ``A`` [m, d] the states that shall be read as before, with a ridge
below them, ``C`` [s, d] the constraint rows, ``R`` [o, s] how much else each of them shall be read as. Published:
``D = R (C G^-1 C^T)^-1 C G^-1``, ``G = A^T A``. Here (6.3) ``A = Q T`` by QR, so that G, whose condition is the square,
is never formed; ``X = C T^-1 = U Sigma Y^T`` with the directions kept that are not next to zero; and

``D = (R U Sigma^-1) B``, ``B = Y^T T^-T`` [r, d], which is G-orthonormal: ``B G B^T = I``.

So ``||D A^T||_F = ||R U Sigma^-1||_F`` is known before anything is applied, and the solution is the one of minimum norm
where rows of C depend on one another. Everything in float64 on the CPU; nothing here knows of models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_AT_ONCE = 5
"""Rows that are decomposed together, as a multiple of their length."""


@dataclass(frozen=True, eq=False)
class Held:
    """What shall stay: ``states`` T_0 [d, d] with ``T_0^T T_0 = C_reg^T C_reg``, and ``whitener`` T [d, d], upper
    triangular, with ``T^T T = C_reg^T C_reg + ridge I``. float64.
    """

    states: Tensor
    whitener: Tensor
    ridge: float


@dataclass(frozen=True, eq=False)
class LeastChange:
    """The solution for all matrices that read the same states; a matrix comes in with its R. ``left`` U [s, r],
    ``strengths`` Sigma [r], ``basis`` B [r, d], ``rows`` C [s, d], ``weakest`` the smallest direction of all, dropped
    or not, as a share of the strongest.
    """

    rows: Tensor
    left: Tensor
    strengths: Tensor
    basis: Tensor
    weakest: float

    @property
    def rank(self) -> int:
        return len(self.strengths)

    @property
    def condition(self) -> float:
        """Strongest over weakest kept direction; 1 where there is none."""
        return float(self.strengths[0] / self.strengths[-1]) if self.rank else 1.0

    def coefficients(self, wanted: Tensor) -> Tensor:
        """``R U Sigma^-1`` [o, r] for ``wanted`` R [o, s]: D in the basis, and ``||D A^T||_F`` is its norm."""
        return (wanted @ self.left) / self.strengths

    def change(self, wanted: Tensor) -> Tensor:
        """D [o, d] for ``wanted`` R [o, s]."""
        return self.coefficients(wanted) @ self.basis

    def contradicted(self, wanted: Tensor) -> Tensor:
        """``R (I - U U^T)`` [o, s]: what rows that depend on one another want differently."""
        return wanted - (wanted @ self.left) @ self.left.T

    def stored(self) -> tuple[Tensor, Tensor]:
        """(Z [r, r], Q [r, d]) with ``B = Z Q`` and orthonormal rows Q: ``D = (R U Sigma^-1 Z) Q``. Rounded to single
        precision these factors lose no more than D itself would; B spans decades.
        """
        orthonormal, triangle = torch.linalg.qr(self.basis.T)
        return triangle.T.contiguous(), orthonormal.T.contiguous()


class RunningTriangle:
    """T_0 [d, d] of rows that come in chunks, by QR of some thousand of them below what was found so far."""

    def __init__(self, width: int) -> None:
        self._waiting = [torch.zeros(width, width, dtype=torch.float64)]

    def add(self, rows: Tensor) -> None:
        """[m, d]"""
        self._waiting.append(rows.double().cpu())
        if sum(map(len, self._waiting)) > ROWS_AT_ONCE * len(self._waiting[0]):
            self._waiting = [self.found()]

    def found(self) -> Tensor:
        """The triangle of all rows so far."""
        triangle: Tensor = torch.linalg.qr(torch.cat(self._waiting), mode="r").R
        return triangle


def triangle_of(chunks: Iterable[Tensor], width: int) -> Tensor:
    """T_0 [d, d] of rows that come in chunks [m_i, d]."""
    triangle = RunningTriangle(width)
    for chunk in chunks:
        triangle.add(chunk)
    return triangle.found()


def held(states: Tensor, ridge: float) -> Held:
    """``ridge`` is a share of the mean square of a state's number, ``tr(G) / d``; with 0 the states must span all
    directions.
    """
    width = states.shape[1]
    squared = ridge * float(states.square().sum()) / width
    if not squared:
        return Held(states, states, 0.0)
    eye = torch.eye(width, dtype=torch.float64)
    stacked = torch.cat([states, squared**0.5 * eye])
    return Held(states, torch.linalg.qr(stacked, mode="r").R, squared)


def least_change(rows: Tensor, kept: Held, tolerance: float) -> LeastChange:
    """``rows`` C [s, d] float64; directions below ``tolerance`` of the strongest are dropped."""
    white = whitened(rows, kept)
    left, strengths, right = torch.linalg.svd(white, full_matrices=False)
    strong = strengths > tolerance * strengths[:1]
    basis = torch.linalg.solve_triangular(kept.whitener.T, right[strong], upper=False, left=False)
    share = float(strengths[-1] / strengths[0]) if len(strengths) and strengths[0] > 0 else 0.0
    return LeastChange(rows, left[:, strong], strengths[strong], basis, share)


def whitened(rows: Tensor, kept: Held) -> Tensor:
    """``C T^-1`` [s, d]: the rows where every direction that texts use is equally long."""
    white: Tensor = torch.linalg.solve_triangular(kept.whitener, rows, upper=True, left=False)
    return white


def stationarity(solved: LeastChange, kept: Held) -> Tensor:
    """``B G (I - C^+ C)`` [r, d] beside ``B G`` [r, d], stacked [2, r, d]: 0 in the first at the optimum (KKT: ``D G``
    lies in the row space of C).
    """
    pulled = (solved.basis @ kept.whitener.T) @ kept.whitener
    _, strengths, right = torch.linalg.svd(solved.rows, full_matrices=False)
    span = right[strengths > 1e-13 * strengths[:1]]
    return torch.stack([pulled - (pulled @ span.T) @ span, pulled])
