"""The algebra of the closed-form merge (methods.md 6) against independent solvers: the linear system of the optimality
conditions in numpy, and a general solver of scipy that knows nothing of least squares.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from tests.reference.clip_text import Array
from worker.ml.least_change import LeastChange, held, least_change, stationarity, triangle_of
from worker.ml.streams import rng

D, OUT, CAPTIONS = 20, 7, 160


def drawn(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng(0, name, 0)).double()


def states(name: str, rows: int, width: int = D) -> Tensor:
    """Text states on a spectrum over three decades, as those of real encoders."""
    turn = torch.linalg.qr(drawn("turn", width, width)).Q
    return drawn(name, rows, width) @ torch.diag(torch.logspace(0, -3, width).double()) @ turn


class Case:
    """Captions A, constraint rows C, wanted changes R, and our solution."""

    def __init__(
        self,
        rows: int = 6,
        *,
        captions: int = CAPTIONS,
        ridge: float = 1e-8,
        width: int = D,
        out: int = OUT,
        tolerance: float = 1e-10,
    ) -> None:
        self.a = states("captions", captions, width)
        self.c = states("words", rows, width)
        self.r = drawn("wanted", out, rows)
        self.kept = held(triangle_of(self.a.split(37), width), ridge)
        self.tolerance = tolerance

    def solved(self, rows: Tensor | None = None) -> LeastChange:
        return least_change(self.c if rows is None else rows, self.kept, self.tolerance)

    @property
    def gram(self) -> Array:
        """G with the ridge, the slow way."""
        a: Array = self.a.numpy()
        return a.T @ a + self.kept.ridge * np.eye(a.shape[1])


def by_linear_system(gram: Array, rows: Array, wanted: Array) -> Array:
    """``[[G, -C^T], [C, 0]] [D^T; Lam^T] = [0; R^T]``: the optimality conditions as one system."""
    count = len(rows)
    system = np.block([[gram, -rows.T], [rows, np.zeros((count, count))]])
    right = np.concatenate([np.zeros((gram.shape[0], len(wanted))), wanted.T])
    solution: Array = np.linalg.solve(system, right)[: gram.shape[0]].T
    return solution


def test_it_is_the_published_formula_and_solves_the_optimality_conditions() -> None:
    case = Case()
    ours = case.solved().change(case.r).numpy()
    c, r = case.c.numpy(), case.r.numpy()
    inverse = np.linalg.inv(case.gram)
    published = r @ np.linalg.inv(c @ inverse @ c.T) @ c @ inverse
    np.testing.assert_allclose(ours, published, rtol=1e-6, atol=1e-6 * np.abs(published).max())
    np.testing.assert_allclose(
        ours, by_linear_system(case.gram, c, r), rtol=1e-6, atol=1e-6 * np.abs(ours).max()
    )
    np.testing.assert_allclose(ours @ c.T, r, atol=1e-10 * np.abs(r).max())


def test_a_general_solver_finds_the_same() -> None:
    """scipy's SLSQP, which knows an objective and equations and nothing of their form; one matrix row at a time."""
    case = Case(3, width=6, out=2, captions=40, ridge=0.0)
    ours, c, a = case.solved().change(case.r).numpy(), case.c.numpy(), case.a.numpy()
    for row, wanted in zip(ours, case.r.numpy(), strict=True):
        found = minimize(
            lambda x: 0.5 * float(np.square(a @ x).sum()),
            np.linalg.lstsq(c, wanted, rcond=None)[0],
            jac=lambda x: a.T @ (a @ x),
            constraints={"type": "eq", "fun": lambda x, w=wanted: c @ x - w, "jac": lambda x: c},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        assert np.square(a @ row).sum() <= np.square(a @ found.x).sum() * (1 + 1e-9)
        np.testing.assert_allclose(row, found.x, rtol=2e-3, atol=2e-3 * np.abs(row).max())


def test_the_drift_is_known_before_it_is_measured() -> None:
    case = Case()
    change, solved = case.solved().change(case.r), case.solved()
    predicted = solved.coefficients(case.r).square().sum()
    s = case.c.numpy() @ np.linalg.inv(case.gram) @ case.c.numpy().T
    np.testing.assert_allclose(
        float(predicted), np.trace(case.r.numpy() @ np.linalg.inv(s) @ case.r.numpy().T), rtol=1e-6
    )
    measured = (case.a @ change.T).square().sum() + case.kept.ridge * change.square().sum()
    np.testing.assert_allclose(float(measured), float(predicted), rtol=1e-10)


def test_the_optimality_condition_tells_the_optimum_from_another_feasible_change() -> None:
    case = Case()
    solved = case.solved()
    off, pulled = stationarity(solved, case.kept)
    coefficients = solved.coefficients(case.r)
    assert (coefficients @ off).norm() < 1e-10 * (coefficients @ pulled).norm()
    change = solved.change(case.r).numpy()
    c = case.c.numpy()
    elsewhere = np.eye(D) - np.linalg.pinv(c) @ c
    assert np.abs(change @ case.gram @ elsewhere).max() < 1e-9 * np.abs(change @ case.gram).max()
    pseudo = case.r.numpy() @ np.linalg.pinv(c).T  # feasible too: every metric meets the constraints
    np.testing.assert_allclose(pseudo @ c.T, case.r.numpy(), atol=1e-8)
    assert np.abs(pseudo @ case.gram @ elsewhere).max() > 1e-3 * np.abs(pseudo @ case.gram).max()


def test_more_concepts_never_drift_less() -> None:
    case = Case(12)
    drifts = [
        float(least_change(case.c[:n], case.kept, 1e-10).coefficients(case.r[:, :n]).norm())
        for n in range(1, 13)
    ]
    assert drifts == sorted(drifts)


def test_the_order_of_the_concepts_does_not_matter() -> None:
    case = Case()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    other = case.solved(case.c[order]).change(case.r[:, order])
    torch.testing.assert_close(other, case.solved().change(case.r), rtol=1e-8, atol=1e-8)


def test_one_concept_is_its_projection_and_one_row_the_rank_one_edit() -> None:
    case = Case(1)
    wanted, key = case.r, case.c[0].numpy()
    dual = np.linalg.inv(case.gram) @ key
    expected = np.outer(wanted[:, 0].numpy(), dual / (key @ dual))
    np.testing.assert_allclose(case.solved().change(wanted).numpy(), expected, rtol=1e-6, atol=1e-9)
    several = Case(4)
    delta = drawn("delta", OUT, D)
    solved = several.solved()
    inner, rows = solved.stored()
    projected = (
        delta
        @ several.c.T
        @ torch.linalg.pinv(several.c @ torch.from_numpy(np.linalg.inv(several.gram)) @ several.c.T)
    )
    k = several.c @ torch.from_numpy(np.linalg.inv(several.gram))
    made = solved.change(delta @ several.c.T)
    torch.testing.assert_close(made, projected @ k, rtol=1e-5, atol=1e-6)
    stored = (solved.coefficients(delta @ several.c.T) @ inner) @ rows
    torch.testing.assert_close(stored, made, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4).double(), rtol=0, atol=1e-12)


def test_a_concept_with_itself_is_the_concept_alone() -> None:
    """Dependent rows: the published formula is wrong here (methods.md 6.3), and minimum norm is not."""
    case = Case(5)
    twice, alone = case.solved(torch.cat([case.c, case.c])), case.solved()
    assert twice.rank == 5
    wanted = torch.cat([case.r, case.r], dim=1)
    torch.testing.assert_close(twice.change(wanted), alone.change(case.r), rtol=1e-7, atol=1e-7)
    assert twice.contradicted(wanted).norm() < 1e-9 * wanted.norm()
    against = torch.cat([case.r, -case.r], dim=1)
    torch.testing.assert_close(twice.contradicted(against), against, rtol=1e-8, atol=1e-8)
    assert twice.change(against).norm() < 1e-8 * alone.change(case.r).norm()


def test_nothing_learned_changes_nothing() -> None:
    case = Case()
    assert not case.solved().change(torch.zeros(OUT, 6).double()).any()


def test_fewer_captions_than_dimensions_need_the_ridge() -> None:
    case = Case(4, captions=9)
    ours = case.solved().change(case.r).numpy()
    expected = by_linear_system(case.gram, case.c.numpy(), case.r.numpy())
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(ours @ case.c.numpy().T, case.r.numpy(), atol=1e-8)


@pytest.mark.parametrize("rows", [2, 8])
def test_single_precision_factors_lose_what_single_precision_loses(rows: int) -> None:
    case = Case(rows)
    inner, basis = case.solved().stored()
    values = (case.solved().coefficients(case.r) @ inner).float()
    change = values @ basis.float()
    exact = case.solved().change(case.r)
    assert (change.double() - exact).norm() < 1e-6 * exact.norm()
