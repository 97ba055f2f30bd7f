"""The sum of spectral shifts, ``U diag(relu(sigma + sum_n s_n delta_n)) V^T`` (Han et al., ICCV 2023, arXiv 2303.11305,
section 3.3; methods.md 9). The result is ordinary SVDiff weights with several words.

Not the sum of the changes: where a singular value reaches zero, the sum of shifts goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from backend.schemas.merges.requests import MergeReport, SiteMerge
from backend.schemas.merges.svdiff_sum import CARD, SVDiffSumParams
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TokenRows
from worker.ml.families.base import DiffusionModel
from worker.ml.merges.base import Merged, MergeInput
from worker.ml.merges.inputs import (
    as_changes,
    check_inputs,
    described,
    merged_manifest,
    renamed_words,
    renaming_notes,
)
from worker.ml.merges.sums import NOTHING_PROVEN
from worker.ml.readers import reader_of
from worker.ml.run import Run
from worker.ml.taught_words import taught_rows, token_tensors

METHOD = "svdiff"
WIDTHS = ("key-value", "cross", "linear", "all")
"""SVDiff's choices of layers; each holds those before it."""


class SVDiffSum:
    """The merge; it holds no state."""

    name = CARD.name

    @torch.no_grad()
    def merge(
        self, model: DiffusionModel, inputs: Sequence[MergeInput], params: SVDiffSumParams, run: Run
    ) -> Merged:
        began = time.monotonic()
        check_inputs(model, CARD, inputs)
        shifts: dict[str, Tensor] = {}
        checksums: dict[str, Tensor] = {}
        words: dict[str, Tensor] = {}
        for place, each in enumerate(inputs):
            as_changes(model, each)  # they fit the base
            for name, tensor in each.weights.tensors.items():
                if name.endswith(".shift"):
                    addend = each.scale * tensor.double()
                    shifts[name] = shifts[name] + addend if name in shifts else addend
                elif name.endswith(".checksum"):
                    checksums[name] = tensor
            rows = {
                token: TokenRows(known.start, known.at(each.scale))
                for token, known in taught_rows(model, each.weights).items()
            }
            words |= renamed_words(each, token_tensors(rows))
            run.step("merge", place + 1, len(inputs))
        text_side = all(each.weights.manifest.side == "text" for each in inputs)
        given = {
            **inputs[0].weights.manifest.params,
            **params.model_dump(mode="json"),
            "layers": _layers(inputs),
        }
        manifest = merged_manifest(
            model, self.name, "text" if text_side else "weights", inputs, given
        ).model_copy(update={"method": METHOD})
        summed = {name: each.float() for name, each in shifts.items()}
        result = ConceptWeights(manifest, {**words, **summed, **checksums})
        deltas = reader_of(result).deltas(model, result)
        report = MergeReport(
            merge=self.name,
            inputs=described(inputs),
            verified=True,
            notes=[*renaming_notes(inputs), NOTHING_PROVEN],
            seconds=time.monotonic() - began,
            sites=[SiteMerge(site=name, change=float(delta.norm())) for name, delta in deltas.items()],
        )
        return Merged(result, report)


def _layers(inputs: Sequence[MergeInput]) -> str:
    """Which layers the sum changes, as SVDiff's parameter names them: the widest choice of all."""
    return max((str(each.weights.manifest.params["layers"]) for each in inputs), key=WIDTHS.index)
