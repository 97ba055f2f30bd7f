"""What a closed-form merge weighs on the shapes of Stable Diffusion 1.x: a row space, and what it does at each site."""

from __future__ import annotations

import json

import pytest

from backend.schemas.merges.closed_form import ClosedFormParams
from benchmarks.merging import SHAPES, TextAndMatrices, concept
from worker.ml.concept_weights import SHARED_ROWS
from worker.ml.merges import MERGES, Merged, MergeInput
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun

ROWS_OF_A_WORD = 6
"""From V* to the end of the text in both of its captions."""
WIDTHS, TEXT = SHAPES["sd15"]
DENSE_BYTES = 4 * 2 * sum(WIDTHS) * TEXT["hidden_size"]


@pytest.fixture(scope="module")
def base() -> TextAndMatrices:
    """The real key and value matrices behind a text encoder of their width but of one layer, which costs nothing."""
    return TextAndMatrices(
        WIDTHS, {**TEXT, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 600}, 20
    )


def merged(base: TextAndMatrices, concepts: int, **params: object) -> Merged:
    inputs = [MergeInput(str(at), concept(base, at, rank=4)) for at in range(concepts)]
    chosen = ClosedFormParams.model_validate({"captions": 20, **params})
    return MERGES["closed-form"].merge(base, inputs, chosen, InProcessRun())


def test_dense_matrices_would_take_75_megabytes() -> None:
    assert (len(WIDTHS), 2 * sum(WIDTHS)) == (16, 24_960)
    assert DENSE_BYTES == 76_677_120


def test_two_concepts_take_a_megabyte(base: TextAndMatrices) -> None:
    result = merged(base, 2)
    assert result.report.verified, result.report.failures
    rank = 2 * ROWS_OF_A_WORD
    tensors = result.weights.tensors
    assert tensors[SHARED_ROWS].shape == (rank, TEXT["hidden_size"])
    sites = result.weights.site_parts()
    assert len(sites) == 2 * len(WIDTHS)
    assert {tuple(held) for held in sites.values()} == {("values",)}
    assert {held["values"].shape[1] for held in sites.values()} == {rank}
    content = result.weights.to_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    words = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("token."))
    assert len(content) - header == 4 * rank * (2 * sum(WIDTHS) + TEXT["hidden_size"]) + words
    assert 1.2e6 < len(content) < 1.3e6
    assert header < 10_000
    assert json.loads(content[8:header])["__metadata__"]["moongate"]


def test_it_grows_with_the_words_and_does_what_dense_matrices_did(base: TextAndMatrices) -> None:
    """In company two words have four rows more: one third more bytes. Dense, the result has all of the matrices."""
    two, company = merged(base, 2), merged(base, 2, company=True)
    assert company.report.rank == 2 * ROWS_OF_A_WORD + 4
    assert len(company.weights.to_bytes()) == pytest.approx(4 / 3 * len(two.weights.to_bytes()), rel=0.02)
    deltas = reader_of(two.weights).deltas(base, two.weights)
    assert sum(each.nbytes for each in deltas.values()) == DENSE_BYTES
