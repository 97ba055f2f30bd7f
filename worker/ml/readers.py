"""How weights of any origin are read: those of a method by the method, those of a merge by what the merge writes."""

from __future__ import annotations

from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import MethodUnsupported
from worker.ml.methods import METHODS
from worker.ml.methods.base import Reader
from worker.ml.shared_rows import SharedRows
from worker.ml.summed_changes import SummedChanges

MERGED: dict[str, Reader] = {
    "closed-form": SharedRows(),
    "linear": SummedChanges(),
    "ties": SummedChanges(),
    "dare": SummedChanges(),
    "gradient-fusion": SummedChanges(),
}
"""Readers of what merges make and no method does, by the ``method`` of the manifest."""


def reader_of(weights: ConceptWeights) -> Reader:
    """Who reads ``weights``. Raises `MethodUnsupported`."""
    name = weights.manifest.method
    reader = METHODS.get(name) or MERGED.get(name)
    if reader is None:
        raise MethodUnsupported(f"These weights were made by the method {name}, which is not known here.")
    return reader
