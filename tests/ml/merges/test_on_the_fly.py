"""A prompt with several text-side weights: merged without being asked, to the same picture as a stored merge."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
from worker.ml.sampling import composition
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
    composed = Composition(model)
    first, again = composed.of(both)[0], composed.of(both[::-1])[0]
    assert len(first) == 1
    assert first[0][0] is again[0][0]
    assert composed.of(((both[0][0], 0.5), both[1]))[0][0][0] is not first[0][0]
    word = made(model, "two", "teapot", method="textual-inversion", seed=5)
    gated = taught(model, "one", "cat", tmp_path, photos, "perfusion", steps=1)
    free, _ = composed.of(((word, 1.0), (gated, 1.0)))
    assert [set(edit.tokens) for edit, _ in free] == [{"two"}, {"one"}]
    mixed, _ = composed.of((both[0], (word, 1.0), (gated, 1.0)))
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


# ---- kept for the next call


class Merges:
    """Counts what `merged_edit` solves; ``failing``: every merge is off by a lot."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.failing = 0, False
        solve = composition.solve

        def counted(*args: Any) -> Any:
            self.count += 1
            found = solve(*args)
            if self.failing:
                found.solved.values.update({name: 2 * each for name, each in found.solved.values.items()})
            return found

        patch.setattr(composition, "solve", counted)


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> Merges:
    return Merges(monkeypatch)


@pytest.fixture
def fresh(model: DiffusionModel) -> DiffusionModel:
    """The model as it is loaded: nothing was derived from it yet."""
    loaded = copy.copy(model)
    loaded.derived = {}
    return loaded


def reloaded(
    weights: tuple[tuple[ConceptWeights, float], ...], folder: Path
) -> tuple[tuple[ConceptWeights, float], ...]:
    """The same files as the next job reads them."""
    found = []
    for at, (each, scale) in enumerate(weights):
        each.save(folder / f"{at}.safetensors")
        found.append((ConceptWeights.load(folder / f"{at}.safetensors"), scale))
    return tuple(found)


def drawn(model: DiffusionModel, weights: tuple[tuple[ConceptWeights, float], ...]) -> np.ndarray:
    ((_, pixels),) = generate(model, [replace(UNIT, weights=weights)], InProcessRun())
    return pixels


def test_the_next_call_with_a_set_does_not_merge_it_again(
    fresh: DiffusionModel, both: tuple[tuple[ConceptWeights, float], ...], tmp_path: Path, merges: Merges
) -> None:
    first = drawn(fresh, both)
    again = [drawn(fresh, chosen) for chosen in (both, both[::-1], reloaded(both, tmp_path))]
    assert merges.count == 1
    assert all(np.array_equal(first, each) for each in again)
    weaker = drawn(fresh, (both[0], (both[1][0], 0.25)))
    assert merges.count == 2
    assert not np.array_equal(first, weaker)
    fresh.derived.clear()
    assert np.array_equal(first, drawn(fresh, both))
    assert merges.count == 3


def test_weights_that_differ_are_another_set(
    fresh: DiffusionModel, both: tuple[tuple[ConceptWeights, float], ...], merges: Merges
) -> None:
    """By one number, by what the manifest says of them (so by a gate), or by the model's precision."""
    Composition(fresh).of(both)
    (stark, scale), other = both
    name = "token.stark.learned"
    moved = ConceptWeights(stark.manifest, {**stark.tensors, name: stark.tensors[name] + 1e-3})
    told = ConceptWeights(stark.manifest.model_copy(update={"seed": 77}), stark.tensors)
    for count, weights in enumerate((moved, told), start=2):
        Composition(fresh).of(((weights, scale), other))
        assert merges.count == count
    assert len({each.identity for each in (stark, moved, told)}) == 3
    assert stark.identity == ConceptWeights(stark.manifest, dict(stark.tensors)).identity


def test_a_merge_that_fails_is_not_kept(
    fresh: DiffusionModel, both: tuple[tuple[ConceptWeights, float], ...], merges: Merges
) -> None:
    merges.failing = True
    for count in (1, 2):
        with pytest.raises(InputInvalid, match="cannot be used in one picture"):
            Composition(fresh).of(both)
        assert merges.count == count
    merges.failing = False
    Composition(fresh).of(both)
    assert merges.count == 3
    with pytest.raises(InputInvalid, match="Two of the chosen weights teach <stark>"):
        Composition(fresh).of((*both, both[0]))


def test_the_set_that_was_used_longest_ago_goes_first(
    fresh: DiffusionModel,
    both: tuple[tuple[ConceptWeights, float], ...],
    merges: Merges,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Room for two: the first is used again, so the second goes for the third."""
    (stark, _), (mimi, _) = both
    sets = [((stark, 1.0), (mimi, scale)) for scale in (0.25, 0.5, 0.75)]
    edit = Composition(fresh).of(sets[0])[0][0][0]
    monkeypatch.setattr(composition, "KEPT_BYTES", 2 * composition.edit_bytes(edit))
    for chosen in (sets[1], sets[0], sets[2]):
        Composition(fresh).of(chosen)
    assert merges.count == 3
    Composition(fresh).of(sets[0])
    assert merges.count == 3
    Composition(fresh).of(sets[1])
    assert merges.count == 4
    monkeypatch.setattr(composition, "KEPT_BYTES", 0)
    for count in (5, 6):
        Composition(fresh).of(sets[2])
        assert merges.count == count


def test_the_room_that_an_edit_takes_is_that_of_its_numbers(
    fresh: DiffusionModel, both: tuple[tuple[ConceptWeights, float], ...]
) -> None:
    edit = Composition(fresh).of(both)[0][0][0]
    changes = [each for each in edit.sites.values() if isinstance(each, LowRankChange)]
    rows = [tensor for each in edit.tokens.values() for tensor in (each.start, each.learned)]
    numbers = changes[0].down.numel() + sum(each.up.numel() for each in changes)
    assert len(changes) == len(edit.sites)
    assert composition.edit_bytes(edit) == 4 * (numbers + sum(each.numel() for each in rows))
    assert all(torch.equal(changes[0].down, each.down) for each in changes)
