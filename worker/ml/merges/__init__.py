"""The table of merges: name -> merge, the same names as ``backend.schemas.merges.MERGE_CARDS``.

Adding a merge is one file beside this, one card there and one row here (CONTRIBUTING).
"""

from __future__ import annotations

from worker.ml.merges.base import Merge, Merged, MergeInput
from worker.ml.merges.closed_form import ClosedForm

MERGES: dict[str, Merge] = {merge.name: merge for merge in (ClosedForm(),)}

__all__ = ["MERGES", "Merge", "MergeInput", "Merged"]
