"""Trim, elect sign, disjoint mean (Yadav et al., NeurIPS 2023, arXiv 2306.01708, section 3.2), of one tensor's
changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def trimmed(change: Tensor, density: float) -> Tensor:
    """The share ``density`` of the numbers that are largest in size, at least one; the others are 0."""
    kept = max(1, round(density * change.numel()))
    if kept >= change.numel():
        return change
    flat = change.flatten()
    chosen = flat.abs().topk(kept).indices
    return torch.zeros_like(flat).index_copy(0, chosen, flat[chosen]).reshape(change.shape)


def elected_mean(changes: Sequence[Tensor]) -> Tensor:
    """The sign with the larger total in each place, and the mean of the numbers that have it."""
    stacked = torch.stack(list(changes))
    agreeing = (stacked != 0) & (stacked.sign() == stacked.sum(dim=0).sign())
    return torch.where(agreeing, stacked, 0.0).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
