"""What a method is: functions on named tensors around the one training loop and the one sampling engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.run import Run
from worker.ml.training.lessons import ConceptExamples
from worker.ml.training.trainee import Trainee


class Reader(Protocol):
    """How weights are used: what they are as edits of a model. Methods read what they taught, merges what they made."""

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        """The concept as an edit of text: its words, and on the text side its keys and values. Raises
        `WeightsInvalid` when the weights do not fit the model.
        """

    def installation(self, model: DiffusionModel, weights: ConceptWeights) -> WeightEdit | None:
        """What must be installed beside `edit`; None on the text side. Same errors as `edit`."""

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        """{site: dense change of its weight, fp32} of the denoiser's Linear and Conv; a `NotAdditive` where adding them
        would not be the concept. Same errors as `edit`.
        """


class Method(Reader, Protocol):
    """A row of the table of methods."""

    @property
    def name(self) -> str:
        """The name of its card in ``backend.schemas.methods``."""

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: Any,
        *,
        seed: int,
        prior_dir: Path,
        previews: Sequence[str],
        run: Run,
    ) -> Trainee:
        """Prepares everything a training needs (photos encoded, prior images made) and starts no optimiser.

        ``params`` is of the card's ``params_type``. ``prior_dir`` is kept between trainings. ``previews`` are
        encoder texts. Raises `MethodUnsupported`, `InputInvalid`, `PromptTooLong`, and what `Run.step` raises.
        """


class NotAdditive(dict[str, Tensor]):
    """Changes of a method whose edit is no change of matrices: the nearest one that is, for the analysis and as what a
    merge starts from. Whoever would add them to weights and call it the concept asks for this type first (ADR 7).
    """


__all__ = ["ConceptExamples", "Method", "NotAdditive", "Reader"]
