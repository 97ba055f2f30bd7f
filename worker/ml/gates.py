"""Gated changes of text keys and values (Perfusion, Tewel et al., SIGGRAPH 2023, arXiv 2305.01644; methods.md 10.2).

A rank-one edit with a gate in the place of its linear coefficient is a function of each text state by itself:

``h(e) = W e_perp + sum_j sigmoid((sim_j / n2_j - beta_j) / tau_j) o*_j``

each concept with a gate (beta_j, tau_j) of its own, with the key ``i*_j``, its dual ``k_j = C^-1 i*_j`` under the
covariance C of text states, ``sim_j = k_j . e``, ``n2_j = k_j . i*_j``, and ``e_perp = e - P e``, ``P = I^T (I C^-1
I^T)^-1 I C^-1`` for the stacked keys I. So it fits `text_kv`: states in, keys and values out, row by row of the batch,
and concepts of several owners share one pass of the denoiser. No ``C`` is needed: ``C^-1 I`` are the duals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SINGULAR = 1e-6
"""Keys whose spans differ by less than this share their direction between them."""


@dataclass(frozen=True, eq=False)
class GatedChange:
    """One site's change by n concepts: ``keys`` and ``duals`` [n, d], ``targets`` [n, o]; for each ``bias`` beta,
    ``temperature`` tau > 0 and ``scales``, which multiply its part, [n].
    """

    keys: Tensor
    duals: Tensor
    targets: Tensor
    bias: Tensor
    temperature: Tensor
    scales: Tensor

    def gates(self, states: Tensor) -> Tensor:
        """How far each concept is open at each state, in (0, 1): [..., d] -> [..., n], in float32 at least."""
        wide = _wide(states)
        keys, duals = self.keys.to(wide), self.duals.to(wide)
        nearness = wide @ duals.T / (keys * duals).sum(dim=1)
        return torch.sigmoid((nearness - self.bias.to(wide)) / self.temperature.to(wide))


def gated_change(states: Tensor, weight: Tensor, changes: Sequence[tuple[GatedChange, float]]) -> Tensor:
    """``h(e) - W e`` of several changes with their scales: states [..., d], ``weight`` W [o, d] -> [..., o].

    A scale multiplies the parts of its change, what they take away and what they put there. Differentiable in states
    and targets.
    """
    wide = _wide(states)
    keys = torch.cat([change.keys.to(wide) for change, _ in changes])
    duals = torch.cat([change.duals.to(wide) for change, _ in changes])
    shares = wide @ projection(keys, duals).to(wide).T
    scales = torch.cat([scale * change.scales.to(wide) for change, scale in changes])
    opened = torch.cat([change.gates(states) for change, _ in changes], dim=-1)
    targets = torch.cat([change.targets.to(wide) for change, _ in changes])
    taken = (shares * scales) @ (keys @ weight.to(wide).T)
    return ((opened * scales) @ targets - taken).to(states)


def projection(keys: Tensor, duals: Tensor) -> Tensor:
    """``(I C^-1 I^T)^-1 I C^-1`` [n, d]: the coefficients of ``P e`` in the keys. One concept: ``k / n2``."""
    grams = duals.double() @ keys.double().T
    coefficients: Tensor = torch.linalg.pinv(grams, rtol=SINGULAR) @ duals.double()
    return coefficients


def _wide(states: Tensor) -> Tensor:
    return states if states.dtype == torch.float64 else states.float()
