"""LoHa's equation once more, number by number, in float64 (FedPara, section 2.2)."""

from __future__ import annotations

import numpy as np
import torch

from worker.ml.methods.loha import HadamardChange
from worker.ml.streams import rng


def drawn(rank: int, out: int, width: int) -> HadamardChange:
    def tensor(name: str, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng(3, name, 0))

    return HadamardChange(
        tensor("a1", rank, width),
        tensor("b1", out, rank),
        tensor("a2", rank, width),
        tensor("b2", out, rank),
        0.5,
    )


def test_every_number_is_the_product_of_two_sums() -> None:
    change = drawn(2, 3, 4)
    a1, b1, a2, b2 = (each.double().numpy() for each in change.factors().values())
    expected = np.zeros((3, 4))
    for row in range(3):
        for column in range(4):
            first = sum(b1[row, k] * a1[k, column] for k in range(2))
            second = sum(b2[row, k] * a2[k, column] for k in range(2))
            expected[row, column] = 0.5 * first * second
    np.testing.assert_allclose(change.dense().numpy(), expected, rtol=1e-5)


def test_its_rank_is_the_square_of_theirs() -> None:
    dense = drawn(3, 16, 16).dense().double().numpy()
    assert np.linalg.matrix_rank(dense, tol=1e-4) == 9
