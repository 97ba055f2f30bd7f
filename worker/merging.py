"""Merges: weights of several jobs in, one set of weights and a verification report out.

Files in, files out. A merge that fails its verification ends here: its weights are never written.
"""

from __future__ import annotations

from pathlib import Path

from backend.schemas.executor import Succeeded
from backend.schemas.merges import MERGE_CARDS
from backend.schemas.merges.requests import MergeReport, MergeSpec
from worker.executor import JobFailed
from worker.made_weights import made
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES
from worker.ml.merges.base import MergeInput
from worker.ml.run import Run
from worker.pipe_run import Reporter


def merge_weights(model: DiffusionModel, reporter: Reporter, run: Run) -> Succeeded:
    """What the job asks for. Raises JobFailed, and what `worker.ml.merges.base.Merge.merge` raises."""
    spec = MergeSpec.model_validate(reporter.job.spec)
    merge = MERGES.get(spec.method)
    if merge is None:
        raise JobFailed("method_unsupported", f"The merge {spec.method} is not known to this worker.")
    inputs = [
        MergeInput(
            id=each.file.id,
            weights=ConceptWeights.load(Path(reporter.job.inputs[each.file.storage_key])),
            scale=each.scale,
            renames=spec.renames.get(each.file.id, {}),
        )
        for each in spec.weights
    ]
    reporter.progress("merging", 0, 0)
    params = MERGE_CARDS[spec.method].params_type.model_validate(spec.params)
    outcome = merge.merge(model, inputs, params, run)
    require_verified(outcome.report)
    reporter.progress("saving", 1, 1)
    report = {
        "steps": outcome.weights.manifest.steps,
        "merge": outcome.report.model_dump(mode="json"),
    }
    return made(model, outcome.weights, reporter, report)


def require_verified(report: MergeReport) -> None:
    """Raises JobFailed ``merge_unverified`` with the report, which the job keeps."""
    if not report.verified:
        told = ["The merge did not pass its verification, so it was not kept.", *report.failures]
        raise JobFailed("merge_unverified", " ".join(told), report={"merge": report.model_dump(mode="json")})
