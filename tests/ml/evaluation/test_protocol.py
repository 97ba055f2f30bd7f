"""Measures against hand-computed cases, and KID against its definition and its unbiasedness (methods.md T20)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from worker.ml.evaluation import protocol


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_pairwise_cosine_of_known_rows() -> None:
    x = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert protocol.mean_pairwise_cosine(x, x) == 0.5
    assert protocol.mean_matched_cosine(x, x) == 1.0
    assert protocol.mean_matched_cosine(x, x[::-1]) == 0.0


def test_matched_cosine_refuses_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="row by row"):
        protocol.mean_matched_cosine(np.eye(3), np.eye(3)[:2])


def test_the_anchors_of_the_subject_scale_are_zero_and_one() -> None:
    rng = np.random.default_rng(0)
    subject, base = np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0])
    photos, others = (unit(subject + 0.1 * rng.normal(size=(5, 4))) for _ in range(2))
    pictures = unit(base + 0.1 * rng.normal(size=(30, 4)))
    scale = protocol.subject_scale(photos, others, pictures)
    assert scale.of(protocol.mean_pairwise_cosine(pictures, photos)) == pytest.approx(0)
    assert scale.of(protocol.mean_pairwise_cosine(others, photos)) == pytest.approx(1)
    half = unit((subject + base)[None] + 0.0)
    assert 0.3 < scale.of(protocol.mean_pairwise_cosine(half, photos)) < 0.9


def test_a_judge_that_tells_nothing_apart_has_no_scale() -> None:
    same = unit(np.ones((3, 4)))
    with pytest.raises(ValueError, match="no scale"):
        protocol.subject_scale(same, same, same).of(1.0)


def test_kid_is_the_definition_written_with_loops() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((np.dot(a, b) / 3 + 1) ** 3)

    slow = (
        np.mean([kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j])
        + np.mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
        - 2 * np.mean([kernel(a, b) for a in x for b in y])
    )
    assert protocol.kid(x, y) == pytest.approx(slow, rel=1e-12)


def test_kid_is_unbiased_on_halves_of_one_population_and_sees_a_shift() -> None:
    values = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values.append(protocol.kid(rng.normal(size=(8, 4)), rng.normal(size=(8, 4))))
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    rng = np.random.default_rng(7)
    assert protocol.kid(rng.normal(size=(50, 4)), 1 + rng.normal(size=(50, 4))) > 5 * np.std(values)


@pytest.mark.parametrize("n", [2, 5, 10, 15, 30])
def test_the_interval_is_students(n: int) -> None:
    values = list(np.random.default_rng(n).normal(size=n))
    low, high = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=stats.sem(values))
    result = protocol.spread(values)
    assert result.mean == pytest.approx(np.mean(values))
    assert result.half_width_95 == pytest.approx((high - low) / 2, rel=0.01)


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        protocol.spread([])
