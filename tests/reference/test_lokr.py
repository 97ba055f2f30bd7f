"""LoKr's equation once more, number by number in float64, and against peft's layer (LyCORIS, section 3.2)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoKrConfig
from peft.tuners.lokr.layer import Linear as PeftLinear
from peft.tuners.lokr.layer import factorization

from backend.schemas.methods.lokr import split
from worker.ml.methods.lokr import KroneckerChange
from worker.ml.streams import rng


def drawn(thin: bool, dtype: torch.dtype = torch.float64) -> KroneckerChange:
    """[2, 3] times [4, 5]: a layer from 15 to 8."""

    def tensor(name: str, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng(3, name, 0), dtype=dtype)

    up, down = (tensor("up", 4, 2), tensor("down", 2, 5)) if thin else (tensor("up", 4, 5), None)
    return KroneckerChange(tensor("first", 2, 3), up, down, 0.75)


@pytest.mark.parametrize("thin", [True, False])
def test_the_block_stands_at_every_place_times_the_number_there(thin: bool) -> None:
    change = drawn(thin)
    first, up = change.first.numpy(), change.second_up.numpy()
    expected = np.zeros((8, 15))
    for row in range(8):
        for column in range(15):
            a, k, b, n = row // 4, row % 4, column // 5, column % 5
            if change.second_down is None:
                number = up[k, n]
            else:
                number = sum(up[k, r] * change.second_down.numpy()[r, n] for r in range(2))
            expected[row, column] = 0.75 * first[a, b] * number
    np.testing.assert_allclose(change.dense().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("thin", [True, False])
def test_beside_the_layer_is_inside_its_weight(thin: bool) -> None:
    """Without the dense matrix, for rows of any number of dimensions; and so are the gradients."""
    ours, theirs = drawn(thin), drawn(thin)
    states = torch.randn(2, 7, 15, generator=rng(1, "states", 0), dtype=torch.float64)
    for change in (ours, theirs):
        for tensor in change.factors().values():
            tensor.requires_grad_(True)
    found, dense = ours.added(states), torch.nn.functional.linear(states, theirs.dense())
    torch.testing.assert_close(found, dense, atol=1e-10, rtol=0)
    found.square().sum().backward()
    dense.square().sum().backward()
    for mine, other in zip(ours.factors().values(), theirs.factors().values(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-8, rtol=0)


@pytest.mark.parametrize("thin", [True, False])
def test_its_rank_and_singular_values_are_products(thin: bool) -> None:
    change = drawn(thin)
    expected = np.linalg.svd(change.dense().numpy(), compute_uv=False)
    found = change.singular_values().numpy()
    assert (found > 1e-9).sum() == 2 * (2 if thin else 4) == np.linalg.matrix_rank(change.dense().numpy())
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-6 * expected[0])


@pytest.mark.parametrize("rank", [2, 8])
def test_it_is_what_peft_makes_of_the_same_factors(rank: int) -> None:
    """A layer from 48 to 32 by factor 4: blocks of 8 x 12, whole at rank 8. peft's whole block keeps alpha / r."""
    module = torch.nn.Linear(48, 32)
    config = LoKrConfig(r=rank, alpha=rank, decompose_factor=4)
    theirs = PeftLinear(module, "default", config=config, r=rank, alpha=float(rank))
    held = {
        name: getattr(theirs, name)["default"].detach()
        for name in ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
        if "default" in getattr(theirs, name)
    }
    for name, tensor in held.items():
        tensor.copy_(torch.randn(tensor.shape, generator=rng(5, name, 0)))
    up = held.get("lokr_w2", held.get("lokr_w2_a"))
    assert up is not None
    ours = KroneckerChange(held["lokr_w1"], up, held.get("lokr_w2_b"), 1.0)
    assert (ours.second_down is None) == (rank == 8)
    torch.testing.assert_close(ours.dense(), theirs.get_delta_weight("default"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 64, 127, 192, 320, 768, 1280])
@pytest.mark.parametrize("factor", [0, 4, 6, 8])
def test_sides_are_split_as_lycoris_does(size: int, factor: int) -> None:
    """Up to the root; beyond it LyCORIS turns the two around."""
    small, large = split(size, factor)
    assert small * large == size
    assert (small, large) == tuple(sorted(factorization(size, factor or -1)))
    assert small <= (factor or size)
