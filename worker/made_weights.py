"""The end of every job that makes weights: what changed, what merges compare, and the file in staging."""

from __future__ import annotations

from typing import Any

from backend.failpoints import fp
from backend.schemas.executor import Succeeded
from worker import device
from worker.ml.analysis import weight_change
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families.base import DiffusionModel
from worker.ml.merges.sketch import merge_sketch
from worker.pipe_run import Reporter


def made(
    model: DiffusionModel, weights: ConceptWeights, reporter: Reporter, report: dict[str, Any]
) -> Succeeded:
    """Weights whose job is done but for this. ``report`` is what the job itself has to say of them; an empty sketch
    says that they have nothing to compare.
    """
    analysis = weight_change(model, weights)
    sketch = merge_sketch(model, weights) or {}
    file = reporter.staging / "weights.safetensors"
    fp("result.before_write")
    weights.save(file)
    return Succeeded(
        **reporter.tag,
        files={"weights": file.name},
        report={"analysis": analysis.model_dump(mode="json"), "sketch": sketch, **report},
        peak_memory_bytes=device.peak_bytes(),
    )
