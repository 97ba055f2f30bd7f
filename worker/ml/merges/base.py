"""What a merge is: weights in, weights and a verification report out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from backend.schemas.merges.requests import MergeReport
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run


@dataclass(frozen=True, eq=False)
class MergeInput:
    """Weights with their id and scale. ``renames``: {token in the file: token in the result}."""

    id: str
    weights: ConceptWeights
    scale: float = 1.0
    renames: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Merged:
    """``weights`` must not be used unless ``report.verified``."""

    weights: ConceptWeights
    report: MergeReport


class Merge(Protocol):
    """A row of the table of merges."""

    @property
    def name(self) -> str:
        """The name of its card in ``backend.schemas.merges``."""

    def merge(self, model: DiffusionModel, inputs: Sequence[MergeInput], params: Any, run: Run) -> Merged:
        """``params`` is of the card's ``params_type``. Calls ``run.step("merge", ...)``. Raises `MethodUnsupported` (a
        kind of weights that it cannot take), `InputInvalid`, `WeightsInvalid`, and what `Run.step` raises.
        """
