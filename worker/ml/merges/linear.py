"""The sum of changes, ``W + sum_n s_n dW_n`` (Ilharco et al., ICLR 2023, arXiv 2212.04089, section 2; methods.md 15).

Of any methods whose changes add, on any layer. With weights of the text side alone the result is text side; as soon as
one is weight side, all of it is. A sum promises nothing: every concept's change acts on the words of the others, less
where they were learned along columns of their own (`worker.ml.orthogonal_basis`), which the report says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from backend.schemas.merges.linear import CARD, LinearParams
from worker.ml.families.base import DiffusionModel
from worker.ml.merges.base import Merged, MergeInput
from worker.ml.merges.inputs import columns_of
from worker.ml.merges.sums import merged_sum
from worker.ml.orthogonal_basis import column_notes
from worker.ml.run import Run


class Linear:
    """The merge; it holds no state."""

    name = CARD.name

    def merge(
        self, model: DiffusionModel, inputs: Sequence[MergeInput], params: LinearParams, run: Run
    ) -> Merged:
        def combine(_path: str, changes: Mapping[int, Tensor]) -> Tensor:
            return params.strength * sum(changes.values(), start=changes[min(changes)].new_zeros(()))

        merged = merged_sum(model, (CARD, params), inputs, combine, run)
        notes = [*merged.report.notes, *column_notes([columns_of(each) for each in inputs])]
        return Merged(merged.weights, merged.report.model_copy(update={"notes": notes}))
