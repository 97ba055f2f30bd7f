"""Cutting a change to its largest singular values (methods.md 7) against numpy in float64, loops and brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worker.ml.compression import rank_for
from worker.ml.compression.allocation import Options, allocate, kept, one_rank, size
from worker.ml.compression.spectra import flat, leading, singular_values
from worker.ml.compression.storage import factors
from worker.ml.conditioning import DenseChange
from worker.ml.low_rank import LowRankChange
from worker.ml.stored_changes import read_change

Matrix = NDArray[np.float64]


def matrix(seed: int, rows: int = 14, columns: int = 9, decay: float = 0.6) -> Matrix:
    """Singular values that fall geometrically."""
    draw = np.random.default_rng(seed)
    left, _ = np.linalg.qr(draw.normal(size=(rows, columns)))
    right, _ = np.linalg.qr(draw.normal(size=(columns, columns)))
    return (left * decay ** np.arange(columns)) @ right.T


def by_power_iteration(dense: Matrix, rank: int) -> Matrix:
    """The best approximation without an SVD: one component after the other is found and taken away."""
    rest, found = dense.copy(), np.zeros_like(dense)
    for _ in range(rank):
        v = np.random.default_rng(0).normal(size=dense.shape[1])
        for _ in range(600):
            v = rest.T @ (rest @ v)
            v /= np.linalg.norm(v)
        component = np.outer(rest @ v, v)
        found, rest = found + component, rest - component
    return found


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_cut_is_the_best_approximation_of_its_rank(rank: int) -> None:
    dense = matrix(1)
    left, values, right = (each.numpy() for each in leading(DenseChange(torch.from_numpy(dense)), rank))
    cut = left * values @ right
    np.testing.assert_allclose(cut, by_power_iteration(dense, rank), atol=1e-9)
    singular = np.sqrt(np.linalg.eigvalsh(dense.T @ dense)[::-1])
    error = np.linalg.norm(dense - cut)
    assert error == pytest.approx(np.sqrt(np.square(singular[rank:]).sum()), rel=1e-6)
    draw = np.random.default_rng(3)
    for _ in range(50):  # no other matrix of that rank is nearer
        other = cut + 0.05 * draw.normal(size=(14, rank)) @ draw.normal(size=(rank, 9)) / rank
        other_left, other_values, other_right = np.linalg.svd(other)
        other = (other_left[:, :rank] * other_values[:rank]) @ other_right[:rank]
        assert np.linalg.norm(dense - other) >= error


@pytest.mark.parametrize("convolution", [False, True])
def test_factors_are_cut_as_their_product_is(convolution: bool) -> None:
    """QR of both factors and the SVD of the small matrix between them, against the SVD of the dense product."""
    draw = torch.Generator().manual_seed(0)
    down, up = ((4, 3, 2, 2), (10, 4, 1, 1)) if convolution else ((4, 12), (10, 4))
    change = LowRankChange(torch.randn(down, generator=draw), torch.randn(up, generator=draw), 0.7)
    dense = 0.7 * up_times_down(change)
    left, singular, right = np.linalg.svd(dense, full_matrices=False)
    np.testing.assert_allclose(singular_values(change).numpy(), singular[:4], rtol=1e-6)
    u, s, v = (each.numpy() for each in leading(change, 2))
    np.testing.assert_allclose(u * s @ v, left[:, :2] * singular[:2] @ right[:2], atol=1e-6)


def up_times_down(change: LowRankChange) -> Matrix:
    down = change.down.numpy().astype(np.float64).reshape(len(change.down), -1)
    up = change.up.numpy().astype(np.float64).reshape(-1, len(down))
    return np.array([[sum(row[k] * down[k, i] for k in range(len(down))) for i in range(down.shape[1])]
                     for row in up])  # fmt: skip


def test_the_rank_of_a_share_is_the_first_that_reaches_it() -> None:
    values = np.array([5.0, 3.0, 1.0, 1.0, 0.0])
    for share in (0.01, 0.5, 0.500001, 0.6, 0.8, 0.81, 0.9, 1.0):
        rank = 0
        while values[:rank].sum() < share * values.sum() - 1e-9:
            rank += 1
        assert rank_for(values, share) == rank
    assert rank_for(np.zeros(3), 0.6) == 0
    assert rank_for(np.full(7, 0.1), 1.0) == 7


def test_eight_bits_are_off_by_half_a_step_at_most() -> None:
    """``q = round(127 v / max |v|)``, entry by entry and component by component."""
    dense = matrix(5)
    change = DenseChange(torch.from_numpy(dense))
    u, s, v = (each.numpy() for each in leading(change, 6))
    parts = factors(change, 6, (14, 9), "int8")
    assert {part: tensor.dtype for part, tensor in parts.items()} == {
        "down": torch.int8, "up": torch.int8, "scale": torch.float32
    }  # fmt: skip
    expected = np.zeros((14, 9))
    for k in range(6):
        column = np.round(127 * u[:, k] / np.abs(u[:, k]).max())
        row = np.round(127 * v[k] / np.abs(v[k]).max())
        scale = s[k] * np.abs(u[:, k]).max() * np.abs(v[k]).max() / 127**2
        expected += scale * np.outer(column, row)
        assert np.abs(column / 127 * np.abs(u[:, k]).max() - u[:, k]).max() <= np.abs(u[:, k]).max() / 254
    found = flat(read_change("a", parts, (14, 9))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


# ---- shares of a budget


def random_sites(seed: int, count: int, most: int) -> list[Options]:
    """Random spectra of random decay and size, with a head cost that the first component pays."""
    draw = np.random.default_rng(seed)
    sites = []
    for _ in range(count):
        ranks = int(draw.integers(2, most + 1))
        energies = np.square(draw.uniform(0.01, 3.0) * draw.uniform(0.3, 0.98) ** np.arange(ranks))
        each, head = int(draw.integers(8, 60)), int(draw.integers(0, 40))
        sizes = np.array([0, *(head + each * (k + 1) for k in range(ranks))], np.int64)
        sites.append(Options(sizes, np.concatenate([[0.0], np.cumsum(energies)])))
    return sites


def test_a_shared_budget_is_better_than_one_rank_for_all() -> None:
    better: list[float] = []
    for seed in range(20):
        sites = random_sites(seed, 12, 24)
        everything = kept(sites, [site.last for site in sites])
        for rank in range(1, 13):
            same = [site.at(rank) for site in sites]
            choice = allocate(sites, size(sites, same))
            assert size(sites, choice) <= size(sites, same)
            assert kept(sites, choice) >= kept(sites, same) - 1e-12
            better.append(1 - (everything - kept(sites, choice)) / (everything - kept(sites, same)))
    assert min(better) > 0.1  # of the energy that one rank for all discards
    assert np.median(better) > 0.5


def test_a_shared_budget_is_within_one_step_of_the_best_of_all_choices() -> None:
    """Brute force over every choice of four small sites."""
    for seed in range(12):
        sites = random_sites(100 + seed, 4, 5)
        every = list(product(*(range(site.last + 1) for site in sites)))
        sizes = np.array([size(sites, choice) for choice in every])
        energies = np.array([kept(sites, choice) for choice in every])
        step = max(float(site.kept[-1]) for site in sites)
        for budget in range(0, int(sizes.max()) + 20, 17):
            choice = allocate(sites, budget)
            best = float(energies[sizes <= budget].max())
            assert best - step <= kept(sites, choice) <= best + 1e-12
        everything = allocate(sites, int(sizes.max()))
        assert kept(sites, everything) == pytest.approx(float(energies.max()))


def test_without_heads_the_greedy_choice_is_the_optimum_wherever_a_step_ends() -> None:
    for seed in range(10):
        draw = np.random.default_rng(seed)
        sites = []
        for _ in range(4):
            energies = np.sort(draw.uniform(0, 1, 4))[::-1]
            each = int(draw.integers(3, 30))
            sites.append(Options(each * np.arange(5), np.concatenate([[0.0], np.cumsum(energies)])))
        slopes = sorted(
            ((site.kept[k + 1] - site.kept[k]) / site.sizes[1], n, k + 1)
            for n, site in enumerate(sites) for k in range(4)
        )[::-1]  # fmt: skip
        ends = [0] * 4
        for _, number, option in slopes:
            ends[number] = option
            budget = size(sites, ends)
            best = max(
                kept(sites, choice) for choice in product(range(5), repeat=4) if size(sites, choice) <= budget
            )
            assert kept(sites, allocate(sites, budget)) == pytest.approx(best, abs=1e-12)


def test_one_rank_is_the_largest_that_fits() -> None:
    sites = random_sites(7, 5, 6)
    for budget in range(0, 3000, 41):
        rank = one_rank(sites, budget)
        assert rank == 0 or size(sites, [site.at(rank) for site in sites]) <= budget
        more = [site.at(rank + 1) for site in sites]
        assert size(sites, more) > budget or more == [site.last for site in sites]
