"""The shared basis against Gram and Schmidt in numpy, and LoRAs along columns of it (methods.md 13.2)."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.schemas.merges.linear import LinearParams
from backend.schemas.merges.lora_svd import LoraSVDParams
from tests.ml.merging import made, taught
from tests.ml.teaching import prepare, stark
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES, MergeInput
from worker.ml.orthogonal_basis import Columns, basis_columns, column_notes
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun
from worker.ml.streams import rng

WIDTH = 24


def test_columns_are_those_of_gram_and_schmidt() -> None:
    """Up to signs, which cancel wherever columns are used."""
    basis: list[np.ndarray] = []  # type: ignore[type-arg]
    for place in range(9):
        drawn = torch.randn(
            WIDTH, generator=rng(3, f"orthogonal-basis/{WIDTH}", place), dtype=torch.float64
        ).numpy()
        for known in basis + basis:  # twice is enough
            drawn = drawn - (known @ drawn) * known
        basis.append(drawn / np.linalg.norm(drawn))
    found = basis_columns(WIDTH, 5, 4, 3)
    assert (found.shape, found.dtype) == ((WIDTH, 4), torch.float64)
    np.testing.assert_allclose(np.abs(np.stack(basis[5:], 1).T @ found.numpy()), np.eye(4), atol=1e-12)


def test_the_same_seed_and_shape_are_the_same_to_the_bit() -> None:
    assert torch.equal(basis_columns(WIDTH, 4, 4, 0), basis_columns(WIDTH, 4, 4, 0))
    assert not torch.allclose(
        basis_columns(WIDTH, 4, 4, 0).abs(), basis_columns(WIDTH, 4, 4, 1).abs(), atol=1e-2
    )


def test_different_columns_have_nothing_in_common_up_to_the_last_one() -> None:
    ours = [basis_columns(WIDTH, first, 4, 0) for first in range(0, WIDTH, 4)]
    whole = torch.cat(ours, dim=1)
    torch.testing.assert_close(whole.T @ whole, torch.eye(WIDTH, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.fixture(scope="module")
def three(
    model: DiffusionModel, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> list[ConceptWeights]:
    """LoRAs of attention and convolutions along columns 0 to 3, 4 to 6 and 2 to 5 of the basis."""
    folder = tmp_path_factory.mktemp("orthogonal")
    return [
        taught(
            model, token, "dog", folder, photos, "lora", seed=at, steps=3, learning_rate=0.05, convolution=True,
            basis="orthogonal", first_column=first, rank=rank, alpha=2.0,
        )
        for at, (token, first, rank) in enumerate((("one", 0, 4), ("two", 4, 3), ("tri", 2, 4)))
    ]  # fmt: skip


def test_only_the_other_factor_is_learnt(model: DiffusionModel, photos: list[Path]) -> None:
    """And at the start the change is none, so that the first prediction is the base model's."""
    fixed, usual = (
        prepare(model, [stark(photos)], Path("no-prior"), method="lora", basis=basis, train_token=True)
        for basis in ("orthogonal", "learned")
    )
    assert all(name.endswith((".up", ".learned")) for name in fixed.tensors())
    assert len(fixed.tensors()) == (len(usual.tensors()) - 1) / 2 + 1
    start, other = fixed.result(0), usual.result(0)
    assert start.tensors.keys() == other.tensors.keys()
    for name, tensor in start.tensors.items():
        if name.endswith(".up"):
            assert not tensor.any()
        if name.endswith(".down"):
            lengths = tensor.flatten(1).norm(dim=1)
            torch.testing.assert_close(lengths, torch.full((4,), tensor[0].numel() ** 0.5 / 4))
            assert 0.7 < float(other.tensors[name].flatten(1).norm(dim=1).mean() / lengths[0]) < 1.3


def test_a_trained_concept_does_nothing_along_the_columns_of_another(
    model: DiffusionModel, three: list[ConceptWeights]
) -> None:
    deltas = [reader_of(each).deltas(model, each) for each in three]
    for name in deltas[0]:
        one, two, overlapping = (each[name].flatten(1).double() for each in deltas)
        assert one.norm() > 0
        own, others = (basis_columns(one.shape[1], first, count, 0) for first, count in ((0, 4), (4, 3)))
        assert float((one @ others).norm()) < 1e-6 * float(one.norm())
        assert float((two @ own).norm()) < 1e-6 * float(two.norm())
        assert float((one @ own).norm()) == pytest.approx(float(one.norm()), rel=1e-6)
        assert float((overlapping @ own).norm()) > 1e-2 * float(overlapping.norm())


@pytest.mark.parametrize(("merge", "params"), [("linear", LinearParams()), ("lora-svd", LoraSVDParams())])
def test_in_a_sum_each_does_along_its_columns_what_it_does_alone(
    model: DiffusionModel, three: list[ConceptWeights], merge: str, params: object
) -> None:
    both = [
        MergeInput(str(at), each, scale)
        for at, (each, scale) in enumerate(zip(three, (0.6, 1.0), strict=False))
    ]
    result = MERGES[merge].merge(model, both, params, InProcessRun())
    found = reader_of(result.weights).deltas(model, result.weights)
    for each, first, count in ((both[0], 0, 4), (both[1], 4, 3)):
        for name, delta in reader_of(each.weights).deltas(model, each.weights).items():
            alone = each.scale * delta.flatten(1).double()
            columns = basis_columns(alone.shape[1], first, count, 0)
            off = found[name].flatten(1).double() @ columns - alone @ columns
            assert float(off.norm()) < 1e-5 * float(alone.norm())
    assert any("along columns of their own" in note for note in result.report.notes)


def test_columns_that_are_shared_are_told(model: DiffusionModel, three: list[ConceptWeights]) -> None:
    def notes(*weights: ConceptWeights) -> list[str]:
        inputs = [MergeInput(str(at), each) for at, each in enumerate(weights)]
        return MERGES["linear"].merge(model, inputs, LinearParams(), InProcessRun()).report.notes

    assert any("<one> and <tri> were learned along columns that they share" in note for note in notes(*three))
    assert not any("columns" in note for note in notes(made(model, "a", "cat"), made(model, "b", "cat")))
    assert any("the others along any directions" in note for note in notes(three[0], made(model, "a", "cat")))
    apart = [Columns("<a>", 0, 4, 4), Columns("<b>", 0, 0, 4), Columns("<c>", 0, 8, 1)]
    assert all(one.apart(other) and other.apart(one) for one, other in combinations(apart, 2))
    assert not Columns("<a>", 0, 4, 4).apart(Columns("<b>", 1, 0, 4))
    assert not Columns("<a>", 0, 0, 8).apart(Columns("<b>", 0, 2, 2))
    assert "column" in column_notes(apart)[0]


def test_columns_that_a_layer_does_not_have_are_refused(model: DiffusionModel, photos: list[Path]) -> None:
    def prepared(**params: int) -> object:
        return prepare(model, [stark(photos)], Path("no-prior"), method="lora", basis="orthogonal", **params)

    assert prepared(first_column=28)
    with pytest.raises(InputInvalid, match=r"Columns 29 to 32 .* reads 32 numbers only: .* at most 28"):
        prepared(first_column=29)
