"""What merges that add have in common: each parameter's changes in, one change out; words at their scales beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import BaseModel
from torch import Tensor

from backend.schemas.merges.card import MergeCard
from backend.schemas.merges.requests import MergeReport, SiteMerge
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
from worker.ml.readers import reader_of
from worker.ml.run import Run
from worker.ml.summed_changes import sum_key
from worker.ml.taught_words import taught_rows, token_tensors

NOTHING_PROVEN = (
    "A sum keeps no concept from acting on the words of the others: nothing about the words was proven."
)

Combine = Callable[[str, Mapping[int, Tensor]], Tensor]
"""``combine(path, {place of the input: s_n dW_n, float64 on the CPU})``: the change of one parameter."""


@torch.no_grad()
def merged_sum(
    model: DiffusionModel,
    merge: tuple[MergeCard, BaseModel],
    inputs: Sequence[MergeInput],
    combine: Combine,
    run: Run,
) -> Merged:
    """``merge``: its card and parameters. Text side where all inputs are. ``run.step("merge", ...)`` for each
    parameter; raises what it raises, `MethodUnsupported`, `InputInvalid`, `WeightsInvalid`.
    """
    began = time.monotonic()
    card, params = merge
    check_inputs(model, card, inputs)
    known = [as_changes(model, each) for each in inputs]
    paths = sorted({path for changes in known for path in changes})
    stored: dict[str, Tensor] = {}
    sites = []
    for place, path in enumerate(paths):
        scaled = {
            at: each.scale * changes[path].dense().double().cpu()
            for at, (each, changes) in enumerate(zip(inputs, known, strict=True))
            if path in changes
        }
        change = combine(path, scaled)
        stored[sum_key(path)] = change.float()
        sites.append(SiteMerge(site=path.removesuffix(".weight"), change=float(change.norm())))
        run.step("merge", place + 1, len(paths))
    words, negative = scaled_words(model, inputs)
    text_side = all(each.weights.manifest.side == "text" for each in inputs)
    kept = {"negative": negative} if text_side else {}
    report = MergeReport(
        merge=card.name,
        inputs=described(inputs),
        verified=True,
        notes=[*renaming_notes(inputs), NOTHING_PROVEN],
        seconds=time.monotonic() - began,
        sites=sites,
    )
    manifest = merged_manifest(
        model,
        card.name,
        "text" if text_side else "weights",
        inputs,
        {**params.model_dump(mode="json"), **kept},
    )
    return Merged(ConceptWeights(manifest, {**words, **stored}), report)


def scaled_words(model: DiffusionModel, inputs: Sequence[MergeInput]) -> tuple[dict[str, Tensor], bool]:
    """Tensors of the words, V* at its scale, and whether any change acts on negative prompts."""
    words: dict[str, Tensor] = {}
    negative = False
    for each in inputs:
        edit = reader_of(each.weights).edit(model, each.weights)
        negative = negative or (bool(edit.sites) and edit.negative)
        rows = {
            name: TokenRows(known.start, known.at(each.scale))
            for name, known in taught_rows(model, each.weights).items()
        }
        words |= renamed_words(each, token_tensors(rows))
    return words, negative
