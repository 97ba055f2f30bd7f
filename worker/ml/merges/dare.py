"""DARE (Yu et al., ICML 2024, arXiv 2311.03099, section 3): numbers of each change are dropped at random with the rate
p and the others divided by ``1 - p``, so that the change is the same on average; then they are added, or merged by
TIES without a trim of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from backend.schemas.merges.dare import CARD, DareParams
from worker.ml.families.base import DiffusionModel
from worker.ml.merges.base import Merged, MergeInput
from worker.ml.merges.sums import merged_sum
from worker.ml.run import Run
from worker.ml.sign_election import elected_mean
from worker.ml.streams import rng


class Dare:
    """The merge; it holds no state."""

    name = CARD.name

    def merge(
        self, model: DiffusionModel, inputs: Sequence[MergeInput], params: DareParams, run: Run
    ) -> Merged:
        def combine(path: str, changes: Mapping[int, Tensor]) -> Tensor:
            kept = [
                dropped(each, params.drop, rng(params.seed, f"dare/{path}", at))
                for at, each in changes.items()
            ]
            joined = elected_mean(kept) if params.then == "ties" else torch.stack(kept).sum(dim=0)
            return params.strength * joined

        return merged_sum(model, (CARD, params), inputs, combine, run)


def dropped(change: Tensor, rate: float, rng: torch.Generator) -> Tensor:
    """``m * change / (1 - rate)``, m 0 with the rate and 1 otherwise."""
    stays = torch.rand(change.shape, generator=rng) >= rate
    return torch.where(stays, change / (1.0 - rate), 0.0)
