"""The nearest change (methods.md 13.1) against numpy, LBFGS and what the equations say, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from worker.ml.soft_change import Readings, nearest_change
from worker.ml.streams import rng

D, OUT = 9, 5


def drawn(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng(0, f"fusion/{name}", 0)).double()


def concepts(rows: int, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """(X_i^T [rows, d], dW_i [o, d]) of each concept."""
    return [drawn(f"x{at}", rows, D) for at in range(count)], [drawn(f"w{at}", OUT, D) for at in range(count)]


def stacked(inputs: list[Tensor], changes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """C [s, d] and R [o, s]."""
    return torch.cat(inputs), torch.cat([dw @ x.T for x, dw in zip(inputs, changes, strict=True)], dim=1)


@pytest.mark.parametrize("hold", [0.0, 0.3])
def test_the_published_form(hold: float) -> None:
    """``D = (sum dW_i X_i X_i^T + 0) (sum X_i X_i^T + lam I + A^T A)^-1``, inverted as it stands."""
    inputs, changes = concepts(4, 3)
    rows, wanted = stacked(inputs, changes)
    held = hold * drawn("held", 30, D)
    found = nearest_change(rows, 1e-3, held if hold else None)
    lam = 1e-3 * float((rows.numpy() ** 2).sum()) / D
    left = sum(dw.numpy() @ x.numpy().T @ x.numpy() for x, dw in zip(inputs, changes, strict=True))
    grams = sum(x.numpy().T @ x.numpy() for x in inputs) + lam * np.eye(D) + held.numpy().T @ held.numpy()
    np.testing.assert_allclose((wanted @ found.spread).numpy(), left @ np.linalg.inv(grams), atol=1e-10)
    inner, orthonormal = found.stored()
    np.testing.assert_allclose((wanted @ inner) @ orthonormal, left @ np.linalg.inv(grams), atol=1e-10)
    np.testing.assert_allclose(orthonormal @ orthonormal.T, np.eye(len(orthonormal)), atol=1e-12)
    assert found.stationarity(wanted) < 1e-12
    assert replace(found, spread=1.01 * found.spread).stationarity(wanted) == pytest.approx(0.01)


def test_lbfgs_from_zero_finds_the_same() -> None:
    """The authors' way, with fewer inputs than directions: its limit has no part along what nobody read."""
    inputs, changes = concepts(3, 2)
    rows, wanted = stacked(inputs, changes)
    change = torch.zeros(OUT, D, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([change], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def loss() -> Tensor:
        search.zero_grad()
        missed = (change @ rows.T - wanted).square().sum()
        missed.backward()
        return missed

    search.step(loss)
    ours = wanted @ nearest_change(rows, 1e-10).spread
    np.testing.assert_allclose(ours.numpy(), change.detach().numpy(), atol=1e-4)
    least, *_ = np.linalg.lstsq(rows.numpy(), wanted.numpy().T, rcond=None)
    np.testing.assert_allclose(ours.numpy(), least.T, atol=1e-6)


def test_one_concept_that_was_read_in_every_direction_is_itself() -> None:
    inputs, changes = concepts(3 * D, 1)
    rows, wanted = stacked(inputs, changes)
    np.testing.assert_allclose(wanted @ nearest_change(rows, 1e-12).spread, changes[0], atol=1e-9)


def test_what_is_held_hard_does_not_move() -> None:
    """A hold without end: D A^T = 0, and along what is not held every concept is still met."""
    inputs, changes = concepts(2, 2)
    rows, wanted = stacked(inputs, changes)
    held = drawn("held", 4, D)
    drift = [
        float((wanted @ nearest_change(rows, 1e-10, mu**0.5 * held).spread @ held.T).norm())
        for mu in (1.0, 1e4, 1e8)
    ]
    assert drift[0] > drift[1] > drift[2]
    assert drift[2] < 1e-6 * float((wanted @ nearest_change(rows, 1e-10).spread @ held.T).norm())
    change = wanted @ nearest_change(rows, 1e-10, 1e4 * held).spread
    assert Readings(rows, wanted).off(change) < 1e-5  # 4 inputs and 4 held directions of 9: no conflict


def test_folding_changes_neither_solution_nor_residual() -> None:
    inputs, changes = concepts(14, 3)
    rows, wanted = stacked(inputs, changes)
    folded = Readings(inputs[0], changes[0] @ inputs[0].T)
    for x, dw in zip(inputs[1:], changes[1:], strict=True):
        folded = folded.joined(x, dw @ x.T)
    assert len(folded.rows) == D
    whole = wanted @ nearest_change(rows, 1e-4).spread
    part = folded.wanted @ nearest_change(folded.rows, 1e-4).spread
    np.testing.assert_allclose(part, whole, atol=1e-10)
    slow = np.linalg.norm(whole.numpy() @ rows.numpy().T - wanted.numpy()) / np.linalg.norm(wanted.numpy())
    assert slow > 0.1
    assert folded.off(part) == pytest.approx(slow, abs=1e-10)
    assert Readings(rows, wanted).off(whole) == pytest.approx(slow, abs=1e-10)
    few = Readings(rows[:3], wanted[:, :3]).joined(rows[3:5], wanted[:, 3:5])
    assert torch.equal(few.rows, rows[:5])
    assert torch.equal(few.wanted, wanted[:, :5])
