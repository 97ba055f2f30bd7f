"""The table of merges: name -> merge, the same names as ``backend.schemas.merges.MERGE_CARDS``.

Adding a merge is one file beside this, one card there and one row here (CONTRIBUTING).
"""

from __future__ import annotations

from worker.ml.merges.base import Merge, Merged, MergeInput
from worker.ml.merges.closed_form import ClosedForm
from worker.ml.merges.dare import Dare
from worker.ml.merges.gradient_fusion import GradientFusion
from worker.ml.merges.linear import Linear
from worker.ml.merges.lora_svd import LoraSVD
from worker.ml.merges.perfusion_gates import PerfusionGates
from worker.ml.merges.svdiff_sum import SVDiffSum
from worker.ml.merges.ties import Ties

MERGES: dict[str, Merge] = {
    merge.name: merge
    for merge in (
        ClosedForm(),
        Linear(),
        Ties(),
        Dare(),
        SVDiffSum(),
        LoraSVD(),
        PerfusionGates(),
        GradientFusion(),
    )
}

__all__ = ["MERGES", "Merge", "MergeInput", "Merged"]
