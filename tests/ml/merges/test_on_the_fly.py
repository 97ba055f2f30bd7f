"""A prompt with several text-side weights: merged without being asked, to the same picture as a stored merge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.schemas.merges.closed_form import ClosedFormParams
from tests.ml.merging import made, taught
from worker.ml.concept_weights import ConceptWeights
from worker.ml.constraint_rows import Asked
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.low_rank import LowRankChange
from worker.ml.merges import MERGES, MergeInput
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun
from worker.ml.sampling.composition import Composition, merged_edit
from worker.ml.sampling.engine import GenerationUnit, generate

UNIT = GenerationUnit(0, "a <stark> dog, a <mimi> cat", "snow", 3, 3, 5.0, "ddim", 32, 32)


@pytest.fixture(scope="module")
def both(model: DiffusionModel) -> tuple[tuple[ConceptWeights, float], ...]:
    return (made(model, "stark", "dog", seed=1), 1.0), (made(model, "mimi", "cat", seed=2), 0.5)


def test_the_picture_is_that_of_the_stored_merge(
    model: DiffusionModel, both: tuple[tuple[ConceptWeights, float], ...]
) -> None:
    inputs = [MergeInput(str(at), *each) for at, each in enumerate(both)][::-1]
    stored = MERGES["closed-form"].merge(model, inputs, ClosedFormParams(company=True), InProcessRun())
    assert stored.report.verified, stored.report.failures
    units = [
        replace(UNIT, weights=chosen)
        for chosen in (both, both[::-1], ((stored.weights, 1.0),), (*both[:1], (both[1][0], 0.0)))
    ]
    drawn = [
        pixels.astype(int) for _, pixels in sorted(generate(model, units, InProcessRun()), key=_place(units))
    ]
    assert np.abs(drawn[0] - drawn[2]).max() <= 1
    assert np.array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[3]).max() > 2


def _place(units: list[GenerationUnit]):  # type: ignore[no-untyped-def]
    return lambda pair: next(at for at, unit in enumerate(units) if unit is pair[0])


def test_sets_are_merged_once_and_gates_and_words_never(
    model: DiffusionModel,
    both: tuple[tuple[ConceptWeights, float], ...],
    photos: list[Path],
    tmp_path: Path,
) -> None:
    composition = Composition(model)
    first, again = composition.of(both)[0], composition.of(both[::-1])[0]
    assert len(first) == 1
    assert first[0][0] is again[0][0]
    assert composition.of(((both[0][0], 0.5), both[1]))[0][0][0] is not first[0][0]
    word = made(model, "two", "teapot", method="textual-inversion", seed=5)
    gated = taught(model, "one", "cat", tmp_path, photos, "perfusion", steps=1)
    free, _ = composition.of(((word, 1.0), (gated, 1.0)))
    assert [set(edit.tokens) for edit, _ in free] == [{"two"}, {"one"}]
    mixed, _ = composition.of((both[0], (word, 1.0), (gated, 1.0)))
    assert [set(edit.tokens) for edit, _ in mixed] == [{"stark", "two", "one"}]


def test_what_is_weight_side_or_off_stays_beside(
    model: DiffusionModel,
    both: tuple[tuple[ConceptWeights, float], ...],
    photos: list[Path],
    tmp_path: Path,
) -> None:
    installed = taught(model, "lora", "dog", tmp_path, photos, "lora", steps=1, attention="cross")
    edits, installation = Composition(model).of((*both, (installed, 0.7)))
    assert [set(edit.tokens) for edit, _ in edits] == [{"stark", "mimi"}, {"lora"}]
    assert [scale for _, scale in installation] == [0.7]
    edits, _ = Composition(model).of((both[0], (both[1][0], 0.0)))
    assert [scale for _, scale in edits] == [1.0, 0.0]


def test_one_name_for_two_words_is_refused(
    model: DiffusionModel, both: tuple[tuple[ConceptWeights, float], ...]
) -> None:
    with pytest.raises(InputInvalid, match="Two of the chosen weights teach <stark>"):
        Composition(model).of((both[0], (made(model, "stark", "cat", seed=4), 1.0)))


def test_words_are_asked_in_company_while_that_leaves_half_of_the_directions_free(
    model: DiffusionModel,
) -> None:
    """The tiny base's text states have 32: two words with 12 rows get 4 more, three with 18 would get 12 more."""
    asked = [
        Asked(reader_of(weights).edit(model, weights), 1.0, weights.manifest.tokens)
        for weights in (made(model, name, "dog", seed=at) for at, name in enumerate(("one", "two", "three")))
    ]
    site = model.cross_attention()[0].key.name
    for count, rows in ((2, 12 + 4), (3, 18)):
        change = merged_edit(model, asked[:count]).sites[site]
        assert isinstance(change, LowRankChange)
        assert len(change.down) == rows
