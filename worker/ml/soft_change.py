"""The change of a matrix that reads given inputs as wished, as nearly as it can (gradient fusion of Mix-of-Show, Gu et
al., NeurIPS 2023, arXiv 2305.18292, section 3.2; methods.md 13.1).

``min_D ||D C^T - R||_F^2 + lam ||D||_F^2 + ||D A^T||_F^2``: ``C`` [s, d] what the matrix reads, ``R`` [o, s] how much
else it shall make of it, ``A`` [m, d] what it shall read as before. With X_i for the inputs of concept i and R = [dW_1
X_1 ... dW_N X_N] that is ``D = (sum_i dW_i X_i X_i^T) (sum_i X_i X_i^T + lam I + A^T A)^-1``, and lam -> 0 the limit of
the paper's LBFGS from the base's own weights: D has no part along what nobody read.

Here ``[C; sqrt(lam) I; A] = Q T`` by QR, so that the sum of squares is never formed, and ``D = R K``, ``K = Q_1 T^-T``
[s, d] with the first s rows Q_1 of Q. K is the same for all matrices that read the same inputs. Everything in float64
on the CPU; nothing here knows of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Readings:
    """``rows`` C [s, d] and ``wanted`` R [o, s], float64; ``beyond``: squared norm of what folding left out of R, which
    no change reaches.
    """

    rows: Tensor
    wanted: Tensor
    beyond: float = 0.0

    def joined(self, rows: Tensor, wanted: Tensor) -> Readings:
        """With further rows [m, d] and what they are wanted to be [o, m]; folded to d rows where there are more, which
        changes neither the solution nor any residual: by QR of ``[C R^T]``.
        """
        both = torch.cat([torch.cat([self.rows, self.wanted.T], 1), torch.cat([rows, wanted.T], 1)])
        width = rows.shape[1]
        if len(both) <= width:
            return Readings(both[:, :width], both[:, width:].T, self.beyond)
        triangle = torch.linalg.qr(both, mode="r").R
        rest = float(triangle[width:, width:].square().sum())
        return Readings(triangle[:width, :width], triangle[:width, width:].T, self.beyond + rest)

    def off(self, change: Tensor) -> float:
        """``||D C^T - R||_F / ||R||_F`` for D [o, d]: which share of what was wanted is missing."""
        size = float(self.wanted.square().sum()) + self.beyond
        missed = float((change @ self.rows.T - self.wanted).square().sum()) + self.beyond
        return (missed / size) ** 0.5 if size > 0.0 else 0.0


@dataclass(frozen=True, eq=False)
class Nearest:
    """The solution for all matrices that read ``rows``: ``spread`` K [s, d], ``D = R K``; ``whole`` T [d, d] with
    ``T^T T = C^T C + lam I + A^T A``.
    """

    rows: Tensor
    spread: Tensor
    whole: Tensor

    def stored(self) -> tuple[Tensor, Tensor]:
        """(Z [s, r], Q [r, d]) with ``K = Z Q`` and orthonormal rows Q: ``D = (R Z) Q``, which may be rounded to single
        precision as D itself may; K spans decades.
        """
        orthonormal, triangle = torch.linalg.qr(self.spread.T)
        return triangle.T.contiguous(), orthonormal.T.contiguous()

    def stationarity(self, wanted: Tensor) -> float:
        """``||D T^T T - R C||_F / ||R C||_F`` for ``wanted`` R [o, s]: 0 at the optimum."""
        aimed = wanted @ self.rows
        bent = ((wanted @ self.spread) @ self.whole.T) @ self.whole - aimed
        return float(bent.norm() / aimed.norm()) if bool(aimed.any()) else 0.0


def nearest_change(rows: Tensor, ridge: float, held: Tensor | None = None) -> Nearest:
    """``rows`` C [s, d] float64; ``ridge`` > 0, lam as a share of the mean square of their numbers, ``tr(C^T C) / d``;
    ``held`` A [m, d].
    """
    count, width = rows.shape
    root = (ridge * float(rows.square().sum()) / width) ** 0.5
    below = [root * torch.eye(width, dtype=torch.float64), *([] if held is None else [held])]
    orthonormal, triangle = torch.linalg.qr(torch.cat([rows, *below]))
    spread = torch.linalg.solve_triangular(triangle, orthonormal[:count].T, upper=True).T
    return Nearest(rows, spread, triangle)
