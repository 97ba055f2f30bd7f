"""Several concepts of Perfusion in one file, each with its own gate (Tewel et al., SIGGRAPH 2023, arXiv 2305.01644,
methods.md 10.2): ``h(e) = W (e - P e) + sum_j gate_j o*_j``, ``P = I^T (I C^-1 I^T)^-1 I C^-1`` of all
their keys.

Nothing is computed that a prompt with the separate files would not compute: the file holds the words of all of them
side by side, and the joint projection is that of `worker.ml.gates`. The proof reads the words both ways. The result is
ordinary Perfusion weights with several words, whose header has a gate for each.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp

import torch

from backend.schemas.merges.perfusion_gates import CARD, PerfusionGatesParams
from backend.schemas.merges.requests import MergeReport, SiteMerge
from backend.schemas.methods.perfusion import WordGate
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, TextEdit, text_kv
from worker.ml.constraint_rows import captions_of, read_sites
from worker.ml.families.base import DiffusionModel
from worker.ml.merges.base import Merged, MergeInput
from worker.ml.merges.inputs import (
    check_inputs,
    described,
    merged_manifest,
    merged_tokens,
    renaming_notes,
)
from worker.ml.merges.verification import HALF_RESIDUAL, RESIDUAL_OF_CHANGE
from worker.ml.methods.perfusion import Learned, packed, unpacked, word_gates
from worker.ml.readers import reader_of
from worker.ml.run import Run

METHOD = "perfusion"
WIDE_OPEN = 0.25
"""From so far on a gate that opens at another concept's word is told."""


class PerfusionGates:
    """The merge; it holds no state."""

    name = CARD.name

    @torch.no_grad()
    def merge(
        self, model: DiffusionModel, inputs: Sequence[MergeInput], params: PerfusionGatesParams, run: Run
    ) -> Merged:
        began = time.monotonic()
        check_inputs(model, CARD, inputs)
        words: dict[str, Learned] = {}
        gates: dict[str, WordGate] = {}
        for each in inputs:
            own_gates = word_gates(each.weights.manifest)
            for token, word in unpacked(model, each.weights).items():
                name, gate = each.renames.get(token, token), own_gates[token]
                at_scale = replace(word.rows, learned=word.rows.at(each.scale))
                words[name] = replace(word, rows=at_scale)
                gates[name] = gate.model_copy(update={"scale": gate.scale * each.scale})
        run.step("merge", 1, 2)
        given = {
            **params.model_dump(mode="json"),
            "gates": {name: gate.model_dump(mode="json") for name, gate in gates.items()},
        }
        manifest = merged_manifest(model, self.name, "text", inputs, given).model_copy(
            update={"method": METHOD}
        )
        result = ConceptWeights(manifest, packed(words))
        residuals = _residuals(model, result, inputs)
        run.step("merge", 2, 2)
        deltas, worst = reader_of(result).deltas(model, result), max(residuals.values())
        limit = RESIDUAL_OF_CHANGE if model.dtype.itemsize >= 4 else HALF_RESIDUAL
        failures = [
            f"The words are off by {worst:.1e} of what the separate files make of them; at most {limit:.0e} is a proof."
        ]
        report = MergeReport(
            merge=self.name,
            inputs=described(inputs),
            verified=worst <= limit,
            failures=failures if worst > limit else [],
            notes=[*renaming_notes(inputs), *_neighbours(words, gates)],
            residual=worst,
            seconds=time.monotonic() - began,
            sites=[
                SiteMerge(
                    site=name,
                    change=float(deltas[name].norm()) if name in deltas else 0.0,
                    residual=residual,
                )
                for name, residual in residuals.items()
            ],
        )
        return Merged(result, report)


def _residuals(
    model: DiffusionModel, result: ConceptWeights, inputs: Sequence[MergeInput]
) -> dict[str, float]:
    """{site: largest difference between the result's keys or values and those of the separate files in one prompt, as a
    share of the largest}, over every word by itself and every two neighbours in one text.
    """
    apart = tuple(
        (_renamed(reader_of(each.weights).edit(model, each.weights), each), each.scale) for each in inputs
    )
    together = ((reader_of(result).edit(model, result), 1.0),)
    tokens = merged_tokens(inputs)
    texts = [captions_of(taught)[1] for taught in tokens]
    texts += [
        " ".join(f"<{taught.token}>" for taught in tokens[first : first + 2])
        for first in range(len(tokens) - 1)
    ]
    found = []
    for edits in (together, apart):
        kv = text_kv(model, [Prompt(text, edits) for text in texts]).kv
        found.append([each for layer in zip(kv.keys, kv.values, strict=True) for each in layer])
    return {
        site.name: float((here - there).abs().max() / there.abs().max())
        for site, here, there in zip(read_sites(model), *found, strict=True)
    }


def _renamed(edit: TextEdit, each: MergeInput) -> TextEdit:
    def name(token: str) -> str:
        return each.renames.get(token, token)

    tokens = {name(token): rows for token, rows in edit.tokens.items()}
    return replace(edit, tokens=tokens, locked_words=frozenset(map(name, edit.locked_words)))


def _neighbours(words: Mapping[str, Learned], gates: Mapping[str, WordGate]) -> list[str]:
    """A sentence for each gate that opens at another concept's word."""
    told = []
    for name, gate in gates.items():
        own = words[name]
        for other, word in words.items():
            nearness = float((word.key * own.dual).sum() / (own.key * own.dual).sum())
            opened = gate.scale / (1.0 + exp((gate.bias - nearness) / gate.temperature))
            if other != name and opened > WIDE_OPEN:
                told.append(
                    f"The gate of <{name}> opens to {opened:.0%} at <{other}>: the two words read alike, and <{name}> "
                    f"will be seen where <{other}> is asked for. A higher bias of the gate keeps them apart."
                )
    return told
