"""The closed-form merge (Kumari et al., CVPR 2023, arXiv 2212.04488, section 3.3; methods.md 6): every concept's own
words keep the keys and values that it taught them, and the captions of a corpus move as little as possible.

The algebra is `worker.ml.least_change`, the constraints are `worker.ml.constraint_rows`, what is held still is
`worker.ml.caption_factor`, the proof is `worker.ml.merges.verification`. Stored are a shared row space and what it does
at each site (`worker.ml.shared_rows`): a megabyte for Stable Diffusion 1.x where dense matrices take 75.

Departures: rows before V* are not constrained (the authors' code drops them in one of its two versions); the start
token and some padding are held, each as often as there are captions; constraint rows need not be independent;
words may be constrained in one another's company as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from backend.schemas.merges.closed_form import CARD, ClosedFormParams
from backend.schemas.merges.requests import MergeReport
from worker.ml.caption_factor import HeldTexts, caption_factor, corpus_notes
from worker.ml.concept_weights import ConceptWeights
from worker.ml.constraint_rows import Asked, WordRows, read_sites, without_repeats, word_rows
from worker.ml.families.base import DiffusionModel
from worker.ml.least_change import least_change
from worker.ml.merges.base import Merged, MergeInput
from worker.ml.merges.inputs import (
    as_text_edit,
    check_inputs,
    described,
    merged_manifest,
    merged_tokens,
    renaming_notes,
)
from worker.ml.merges.verification import Solved, prove
from worker.ml.run import Run
from worker.ml.shared_rows import shared_tensors
from worker.ml.taught_words import token_tensors

HALF_TOLERANCE = 1e-4
"""Directions of text states that half precision cannot tell from its rounding (methods.md 6.3)."""


class ClosedForm:
    """The merge; it holds no state."""

    name = CARD.name

    def merge(
        self, model: DiffusionModel, inputs: Sequence[MergeInput], params: ClosedFormParams, run: Run
    ) -> Merged:
        began = time.monotonic()
        check_inputs(model, CARD, inputs)
        asked = [
            Asked(as_text_edit(model, each), each.scale, each.weights.manifest.tokens) for each in inputs
        ]
        found = solve(model, asked, params, run)
        run.step("merge", 1, 2)
        proof = prove(model, found.solved, read_sites(model))
        run.step("merge", 2, 2)
        named = merged_tokens(inputs)
        words = {
            taught.token: word.rows
            for taught, word in zip(named, (w for words in found.words for w in words), strict=True)
        }
        manifest = merged_manifest(
            model, self.name, "text", inputs, {**params.model_dump(mode="json"), "negative": found.negative}
        )
        solved, change = found.solved, found.solved.change
        changed = {name: each for name, each in solved.values.items() if each.numel() and bool(each.any())}
        tensors = shared_tensors(changed, solved.rows) if changed else {}

        def worst(field: str) -> float | None:
            return max((getattr(site, field) or 0.0 for site in proof.sites), default=None)

        report = MergeReport(
            merge=self.name,
            inputs=described(inputs),
            verified=not proof.failures,
            failures=proof.failures,
            notes=[*renaming_notes(inputs), *corpus_notes(model), *found.notes, *proof.notes],
            constraint_rows=len(change.rows),
            rank=change.rank,
            condition=change.condition,
            captions=solved.factor.captions,
            held_rows=solved.factor.rows,
            residual=worst("residual"),
            residual_of_change=worst("residual_of_change"),
            inconsistency=worst("inconsistency"),
            drift=worst("drift"),
            drift_predicted=worst("drift_predicted"),
            drift_held_out=worst("drift_held_out"),
            stationarity=worst("stationarity"),
            seconds=time.monotonic() - began,
            sites=proof.sites,
        )
        return Merged(ConceptWeights(manifest, {**token_tensors(words), **tensors}), report)


@dataclass(frozen=True, eq=False)
class Found:
    """A merge before it is believed; ``words`` of each asked edit in their order, V* as the result has it;
    ``negative``: one of the changes acts on negative prompts, so that of all of them does.
    """

    solved: Solved
    words: list[list[WordRows]]
    negative: bool
    notes: list[str]


@torch.no_grad()
def solve(model: DiffusionModel, asked: Sequence[Asked], params: ClosedFormParams, run: Run) -> Found:
    """Raises `MethodUnsupported`, `InputInvalid`, `PromptTooLong`, and what `Run.step` raises."""
    words = word_rows(model, asked, prefix=params.prefix, company=params.company)
    texts = HeldTexts(params.captions, params.start_token, params.padding, params.ridge)
    factor = caption_factor(model, texts, run)
    every = [word for known in words for word in known]
    states = without_repeats(torch.cat([word.states for word in every]))
    tolerance = params.tolerance if model.dtype.itemsize >= 4 else max(params.tolerance, HALF_TOLERANCE)
    change = least_change(states, factor.held, tolerance)
    sites = read_sites(model)
    wanted = {site.name: torch.cat([word.changes[site.name] for word in every]).T for site in sites}
    inner, rows = change.stored()
    values = {name: (change.coefficients(each) @ inner).float().contiguous() for name, each in wanted.items()}
    solved = Solved(
        change, factor, wanted, torch.cat([word.promised for word in every]), values, rows.float()
    )
    moved = [
        f"<{taught.token}> stood for the same vector as another word, since neither was taught one: here it has a "
        "vector of its own, read as before."
        for each, known in zip(asked, words, strict=True)
        for taught, word in zip(each.tokens, known, strict=True)
        if word.moved
    ]
    negative = any(each.edit.negative for each in asked if each.edit.sites or each.edit.gated)
    return Found(solved, words, negative, moved)


__all__ = ["ClosedForm", "Found", "solve"]
