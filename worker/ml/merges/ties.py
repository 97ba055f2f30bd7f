"""TIES-merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708, section 3): small numbers are dropped, a sign is elected
for every place, and the mean is taken of those that agree with it, times ``strength``.

Departures: numbers are trimmed tensor by tensor, not over all of them together, so that large layers do not empty small
ones; the scale of an input counts in the vote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from backend.schemas.merges.ties import CARD, TiesParams
from worker.ml.families.base import DiffusionModel
from worker.ml.merges.base import Merged, MergeInput
from worker.ml.merges.sums import merged_sum
from worker.ml.run import Run
from worker.ml.sign_election import elected_mean, trimmed


class Ties:
    """The merge; it holds no state."""

    name = CARD.name

    def merge(
        self, model: DiffusionModel, inputs: Sequence[MergeInput], params: TiesParams, run: Run
    ) -> Merged:
        def combine(_path: str, changes: Mapping[int, Tensor]) -> Tensor:
            return params.strength * elected_mean(
                [trimmed(each, params.density) for each in changes.values()]
            )

        return merged_sum(model, (CARD, params), inputs, combine, run)
