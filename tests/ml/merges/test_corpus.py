"""Whose captions a merge holds still: a base that brings none has sentences made for it, and the merge says so."""

from __future__ import annotations

import copy

import pytest

from backend.schemas.merges import MERGE_CARDS
from tests.ml.merging import made
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES, MergeInput
from worker.ml.merges.sketch import merge_sketch
from worker.ml.run import InProcessRun
from worker.ml.text_statistics import caption_corpus


def without_captions(model: DiffusionModel, *nouns: str) -> DiffusionModel:
    """As it was just loaded from a folder without captions, naming these classes."""
    other = copy.copy(model)
    other.derived = {}
    other.captions = ()  # type: ignore[misc]
    other.description = model.description.model_copy(update={"class_nouns": list(nouns)})  # type: ignore[misc]
    return other


@pytest.mark.parametrize("method", ["closed-form", "gradient-fusion"])
def test_made_up_captions_are_told_by_job_and_report_of_every_merge(
    model: DiffusionModel, method: str
) -> None:
    """Of the second as well, which finds the captions' factor ready."""
    bare = without_captions(model, "dog", "cat", "owl")
    inputs = [MergeInput("one", made(bare, "stark", "dog", seed=1))]
    params = MERGE_CARDS[method].params_type()
    for _ in range(2):
        run = InProcessRun()
        report = MERGES[method].merge(bare, inputs, params, run).report
        (told,) = [message for code, message in run.notes if code == "no_captions"]
        assert told in report.notes
        assert "captions.txt" in told
        assert "its class nouns" in told
        assert bare.description.title in told


@pytest.mark.parametrize("method", ["closed-form", "gradient-fusion"])
def test_a_base_with_captions_of_its_own_says_nothing(model: DiffusionModel, method: str) -> None:
    own = without_captions(model)
    own.captions = caption_corpus(model)  # type: ignore[misc]
    run = InProcessRun()
    inputs = [MergeInput("one", made(own, "stark", "dog", seed=1))]
    report = MERGES[method].merge(own, inputs, MERGE_CARDS[method].params_type(), run).report
    assert "no_captions" not in {code for code, _ in run.notes}
    assert not any("captions.txt" in note for note in report.notes)


def test_where_no_classes_are_named_the_nouns_are_common_ones(model: DiffusionModel) -> None:
    bare, run = without_captions(model), InProcessRun()
    merge_sketch(bare, made(bare, "stark", "dog"), run)
    (told,) = [message for code, message in run.notes if code == "no_captions"]
    assert "common nouns" in told
