"""Weights of several concepts in one picture: edits that stand beside one another, and those that are merged first.

Words without changes (Textual Inversion) and gates (Perfusion) compose freely: each acts at its own words. A change of
a matrix acts on every text, so as soon as one is among several text-side weights, all of them become one edit by the
closed-form merge (methods.md 6), the same as a stored merge of the set would be. Weight-side changes stay as they are
and are added beside.
"""

from __future__ import annotations

from collections.abc import Sequence

from backend.schemas.merges.closed_form import ClosedFormParams
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.constraint_rows import Asked, read_sites
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import Installation, WeightEdit
from worker.ml.low_rank import LowRankChange
from worker.ml.merges.closed_form import Found, solve
from worker.ml.merges.verification import prove
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun

Edits = tuple[tuple[TextEdit, float], ...]


class Composition:
    """Reads each weights object once and merges each set once, for as long as it lives."""

    def __init__(self, model: DiffusionModel) -> None:
        self._model = model
        self._read: dict[int, tuple[ConceptWeights, TextEdit, WeightEdit | None]] = {}
        self._merged: dict[frozenset[tuple[int, float]], TextEdit] = {}

    def of(self, weights: Sequence[tuple[ConceptWeights, float]]) -> tuple[Edits, Installation]:
        """What the prompt and the denoiser get. Raises `WeightsInvalid`, `MethodUnsupported`, `InputInvalid`."""
        read = [(*self._known(each)[1:], scale) for each, scale in weights]
        installation = tuple((put, scale) for _, put, scale in read if put is not None and scale != 0.0)
        acting = [
            (each, scale)
            for (each, scale), (_, put, _) in zip(weights, read, strict=True)
            if put is None and scale != 0.0
        ]
        if len(acting) < 2 or not any(self._known(each)[1].sites for each, _ in acting):
            return tuple((edit, scale) for edit, _, scale in read), installation
        beside = tuple((edit, scale) for edit, put, scale in read if put is not None or scale == 0.0)
        return ((self._one(acting), 1.0), *beside), installation

    def _known(self, weights: ConceptWeights) -> tuple[ConceptWeights, TextEdit, WeightEdit | None]:
        """With the weights themselves, so that their id is not given to others meanwhile."""
        if id(weights) not in self._read:
            reader = reader_of(weights)
            edit, installation = reader.edit(self._model, weights), reader.installation(self._model, weights)
            self._read[id(weights)] = weights, edit, installation
        return self._read[id(weights)]

    def _one(self, acting: Sequence[tuple[ConceptWeights, float]]) -> TextEdit:
        key = frozenset((id(weights), scale) for weights, scale in acting)
        if key not in self._merged:
            asked = [
                Asked(self._known(weights)[1], scale, weights.manifest.tokens) for weights, scale in acting
            ]
            self._merged[key] = merged_edit(self._model, asked)
        return self._merged[key]


def _solved(model: DiffusionModel, asked: Sequence[Asked]) -> Found:
    """In one another's company, unless that asks for more than half of the directions that text states have: so many
    rows contradict one another, and each word is asked alone.
    """
    together = solve(model, asked, ClosedFormParams(company=True), InProcessRun())
    rows, width = together.solved.change.rows.shape
    return together if 2 * rows <= width else solve(model, asked, ClosedFormParams(), InProcessRun())


def merged_edit(model: DiffusionModel, asked: Sequence[Asked]) -> TextEdit:
    """One edit that does what each of several does at its own words, in one another's company too; in the order of
    their words, so that the order of the choice does not matter. Raises `InputInvalid` where that cannot be proven, and
    what `solve` raises.
    """
    asked = sorted(asked, key=lambda each: [taught.token for taught in each.tokens])
    names = [taught.token for each in asked for taught in each.tokens]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputInvalid(f"Two of the chosen weights teach <{twice[0]}>: choose one of them.")
    found = _solved(model, asked)
    proof = prove(model, found.solved, read_sites(model))
    if proof.failures:
        raise InputInvalid(f"These weights cannot be used in one picture. {' '.join(proof.failures)}")
    words = dict(zip(names, (word.rows for words in found.words for word in words), strict=True))
    rows = found.solved.rows.to(model.device)
    changes = {
        name: LowRankChange(rows, values.to(model.device), 1.0)
        for name, values in found.solved.values.items()
        if values.any()
    }
    return TextEdit(words, changes, negative=found.negative)
