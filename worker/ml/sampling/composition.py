"""Weights of several concepts in one picture: edits that stand beside one another, and those that are merged first.

Words without changes (Textual Inversion) and gates (Perfusion) compose freely: each acts at its own words. A change of
a matrix acts on every text, so as soon as one is among several text-side weights, all of them become one edit by the
closed-form merge (methods.md 6), the same as a stored merge of the set would be. Weight-side changes stay as they are
and are added beside.

A merged edit stays with the loaded model (``model.derived``) for the next call that has the same set, in any order: the
same contents at the same scales. Those used longest ago go when all together take more than `KEPT_BYTES`; a merge that
raises is not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

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
KEPT_BYTES = 64 << 20
"""Room for some sixty sets of two concepts on Stable Diffusion 1.x."""
SetKey = tuple[str, str, str, tuple[tuple[str, float], ...]]
"""Hash of the base, device, precision, and (identity of the weights, scale) in an order of their own; what the merge is
asked for is the same for all (`_solved`). Weights that are chosen twice are in it twice: of these there is no merge.
"""


class Composition:
    """Reads each weights object once and merges each set once, for as long as it lives; see also `KeptSets`."""

    def __init__(self, model: DiffusionModel) -> None:
        self._model = model
        self._read: dict[int, tuple[ConceptWeights, TextEdit, WeightEdit | None]] = {}
        self._merged: dict[SetKey, TextEdit] = {}

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
        chosen = tuple(sorted((weights.identity, scale) for weights, scale in acting))
        model = self._model
        key = (model.description.hash, str(model.device), str(model.dtype), chosen)
        if key not in self._merged:
            kept = kept_sets(model)
            edit = kept.get(key)
            if edit is None:
                asked = [
                    Asked(self._known(weights)[1], scale, weights.manifest.tokens)
                    for weights, scale in acting
                ]
                edit = merged_edit(model, asked)
                kept.add(key, edit)
            self._merged[key] = edit
        return self._merged[key]


class KeptSets:
    """The edits of sets that were merged for some call, at most `KEPT_BYTES` of them."""

    def __init__(self) -> None:
        self._edits: OrderedDict[SetKey, TextEdit] = OrderedDict()

    def get(self, key: SetKey) -> TextEdit | None:
        """None where the set was not merged yet, or was given up."""
        if key in self._edits:
            self._edits.move_to_end(key)
        return self._edits.get(key)

    def add(self, key: SetKey, edit: TextEdit) -> None:
        """An edit that alone takes more than the room is not kept."""
        if edit_bytes(edit) > KEPT_BYTES:
            return
        self._edits[key] = edit
        room = KEPT_BYTES - sum(map(edit_bytes, self._edits.values()))
        while room < 0:
            _, gone = self._edits.popitem(last=False)
            room += edit_bytes(gone)


def kept_sets(model: DiffusionModel) -> KeptSets:
    """Those of the model, for as long as it is loaded."""
    kept = model.derived.setdefault(KeptSets, KeptSets())
    assert isinstance(kept, KeptSets)
    return kept


def edit_bytes(edit: TextEdit) -> int:
    """What its words and changes hold; what several share counts once."""
    held: list[Tensor] = []
    for rows in edit.tokens.values():
        held += [rows.start, rows.learned]
    for change in edit.sites.values():
        held += [change.down, change.up] if isinstance(change, LowRankChange) else [change.dense()]
    return sum({id(each): each.nbytes for each in held}.values())


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
