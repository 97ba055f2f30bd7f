"""The caption corpus and the covariance of text states: which positions count, and whose captions they are."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from worker.ml.errors import BaseUnusable, InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.families.folder import MAX_CAPTIONS_BYTES, read_captions
from worker.ml.run import InProcessRun
from worker.ml.text_statistics import (
    MOST_CAPTIONS,
    RIDGE,
    caption_corpus,
    corpus_hash,
    placeholder_state,
    text_covariance,
    word_state,
)

CAPTIONS = ("a photo of a dog", "a cat on the beach", "snow")


def with_captions(model: DiffusionModel, *captions: str) -> DiffusionModel:
    other = copy.copy(model)
    other.captions = captions  # type: ignore[misc]
    return other


def test_words_and_end_count_and_neither_start_nor_padding(model: DiffusionModel) -> None:
    """By loops in float64, divided by the number of captions, with the ridge."""
    run = InProcessRun()
    found = text_covariance(with_captions(model, *CAPTIONS), CAPTIONS, run).matrix.numpy()
    end = model.token_ids("", {})[1]
    expected = np.zeros_like(found)
    for text in CAPTIONS:
        ids = model.token_ids(text, {})
        states = model.encode_prompts(torch.tensor([ids]), None).states[0].double().numpy()
        for place in range(1, ids.index(end) + 1):
            expected += np.outer(states[place], states[place]) / len(CAPTIONS)
    expected += RIDGE * np.trace(expected) / len(expected) * np.eye(len(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert run.notes == []


def test_solving_is_multiplying_with_the_inverse(model: DiffusionModel) -> None:
    covariance = text_covariance(model, caption_corpus(model), InProcessRun())
    keys = torch.randn(3, len(covariance.matrix))
    torch.testing.assert_close(
        covariance.solve(keys.double()) @ covariance.matrix, keys.double(), atol=1e-6, rtol=1e-6
    )
    assert covariance.solve(keys).dtype == torch.float32


def test_a_base_without_captions_gets_sentences_of_its_nouns_and_says_so(model: DiffusionModel) -> None:
    run = InProcessRun()
    made = caption_corpus(model)
    assert len(made) <= MOST_CAPTIONS
    assert any("dog" in text for text in made)
    text_covariance(model, made, run)
    assert "no_captions" in {code for code, _ in run.notes}
    own = with_captions(model, *(f"a dog {number}" for number in range(MOST_CAPTIONS + 5)))
    assert caption_corpus(own) == own.captions[:MOST_CAPTIONS]
    assert corpus_hash(made) != corpus_hash(own.captions)


def test_captions_that_are_too_long_are_left_out_with_a_note(model: DiffusionModel) -> None:
    run = InProcessRun()
    long = "dog " * 40
    whole = text_covariance(with_captions(model, *CAPTIONS), (*CAPTIONS, long), run)
    assert torch.equal(whole.matrix, text_covariance(model, CAPTIONS, InProcessRun()).matrix)
    assert run.notes == [
        ("captions_too_long", "1 captions are too long for the text encoder and were left out.")
    ]
    with pytest.raises(InputInvalid, match="No caption"):
        text_covariance(model, (long,), InProcessRun())


def test_captions_come_from_the_folder(tmp_path: Path) -> None:
    assert read_captions(tmp_path) == ()
    (tmp_path / "captions.txt").write_text("a dog\n\n  a cat \n")
    assert read_captions(tmp_path) == ("a dog", "a cat")
    (tmp_path / "captions.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BaseUnusable, match=r"captions\.txt"):
        read_captions(tmp_path)
    with (tmp_path / "captions.txt").open("wb") as file:
        file.truncate(MAX_CAPTIONS_BYTES + 1)
    with pytest.raises(BaseUnusable, match="16 MB"):
        read_captions(tmp_path)


def test_states_are_read_at_the_word(model: DiffusionModel) -> None:
    """A word of several pieces at its last one; a placeholder with a word's row reads as the word."""
    ids = model.token_ids("a photo of a warthog", {})
    states = model.encode_prompts(torch.tensor([ids]), None).states[0]
    last = ids.index(model.token_ids("", {})[1]) - 1
    torch.testing.assert_close(word_state(model, ["a photo of a"], "warthog"), states[last])
    dog = model.word_rows("dog")
    both = ["a photo of a", "the"]
    held = placeholder_state(model, [f"{each} <x> on the beach" for each in both], "x", dog)
    torch.testing.assert_close(held, word_state(model, both, "dog"), atol=1e-5, rtol=1e-5)
