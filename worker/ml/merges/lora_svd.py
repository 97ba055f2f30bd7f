"""The sum of low-rank changes, cut again to a low rank: ``dW = sum_n s_n (alpha_n / r_n) B_n A_n`` (Hu et al., ICLR
2022, arXiv 2106.09685, section 4.1; methods.md 8), and of that the nearest change of rank r (Eckart and Young 1936).

The sum is the stack of the factors, ``[s_1 f_1 B_1 ... s_N f_N B_N] [A_1; ...; A_N]``, to the digit, where adding or
averaging A and B by themselves has cross terms as large as the changes. Its SVD is that of the small matrix between the
QR of both stacks (`worker.ml.compression.spectra`); the dense matrix is never made. The result is ordinary LoRA weights
with several words, alpha = r at every site.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from backend.schemas.merges.lora_svd import CARD, LoraSVDParams
from backend.schemas.merges.requests import MergeReport, SiteMerge
from worker.ml.compression.spectra import changed_shape, singular_values
from worker.ml.compression.storage import factors
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.low_rank import LowRankChange, stacked
from worker.ml.merges.base import Merged, MergeInput
from worker.ml.merges.inputs import (
    as_changes,
    check_inputs,
    columns_of,
    described,
    merged_manifest,
    renaming_notes,
)
from worker.ml.merges.sums import NOTHING_PROVEN, scaled_words
from worker.ml.orthogonal_basis import column_notes
from worker.ml.run import Run

METHOD = "lora"
NOISE = 1e-7
"""Singular values below this share of the largest that went in are the rounding of single precision."""


class LoraSVD:
    """The merge; it holds no state."""

    name = CARD.name

    @torch.no_grad()
    def merge(
        self, model: DiffusionModel, inputs: Sequence[MergeInput], params: LoraSVDParams, run: Run
    ) -> Merged:
        began = time.monotonic()
        check_inputs(model, CARD, inputs)
        known = [_thin_changes(model, each) for each in inputs]
        paths = sorted({path for changes in known for path in changes})
        tensors: dict[str, Tensor] = {}
        sites, whole, kept = [], 0.0, 0.0
        for place, path in enumerate(paths):
            scaled = [
                (changes[path], params.strength * each.scale)
                for each, changes in zip(inputs, known, strict=True)
                if path in changes
            ]
            joined, module = stacked(scaled), path.removesuffix(".weight")
            values = singular_values(joined)
            largest = max(abs(scale) * float(change.singular_values()[0]) for change, scale in scaled)
            real, energies = int((values > NOISE * largest).sum()), values.square()
            rank = min(params.rank or real, real)
            if rank:
                cut = factors(joined, rank, changed_shape(joined), "float32")
                tensors |= {f"site.{module}.{part}": tensor for part, tensor in cut.items()}
                tensors[f"site.{module}.alpha"] = torch.tensor(float(rank))
            energy, stays = float(energies.sum()), float(energies[:rank].sum())
            whole, kept = whole + energy, kept + stays
            sites.append(
                SiteMerge(
                    site=module, change=stays**0.5, rank=rank, discarded_energy=discarded(stays, energy)
                )
            )
            run.step("merge", place + 1, len(paths))
        if not tensors:
            raise InputInvalid(
                "The changes cancel one another at every layer: nothing would be left of them."
            )
        text_side = all(each.weights.manifest.side == "text" for each in inputs)
        manifest = merged_manifest(
            model, self.name, "text" if text_side else "weights", inputs, params.model_dump(mode="json")
        ).model_copy(update={"method": METHOD})
        columns = [] if params.rank else column_notes([columns_of(each) for each in inputs])
        report = MergeReport(
            merge=self.name,
            inputs=described(inputs),
            verified=True,
            notes=[*renaming_notes(inputs), NOTHING_PROVEN, *columns],
            discarded_energy=discarded(kept, whole),
            seconds=time.monotonic() - began,
            sites=sites,
        )
        words, _ = scaled_words(model, inputs)
        return Merged(ConceptWeights(manifest, {**words, **tensors}), report)


def discarded(kept: float, whole: float) -> float:
    """Share of the squared norm that is cut off."""
    return max(0.0, 1.0 - kept / whole) if whole > 0.0 else 0.0


def _thin_changes(model: DiffusionModel, each: MergeInput) -> dict[str, LowRankChange]:
    """{path: change} of one input."""
    changes = as_changes(model, each)
    return {path: change for path, change in changes.items() if isinstance(change, LowRankChange)}
