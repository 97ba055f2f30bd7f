"""How well a concept was learnt: subject similarity, prompt similarity and drift, each on a scale with anchors.

Raw cosines of a judge mean nothing by themselves, so each measure is put on a scale (toyworld.md, last section):

* **subject similarity**: 0 is the base model with the class noun alone, 1 is other true photos of the subject;
* **prompt similarity**: 0 is the base model's pictures against an unrelated prompt, 1 is the base model's own;
* **drift**: KID between pictures of the tuned and of the untouched model on class prompts (methods.md 14.1),
  whose zero is the value of two disjoint sets of seeds of the untouched model.

All functions take features: float arrays [n, d], rows of unit length, computed by the judges in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]


@dataclass(frozen=True)
class Scale:
    """An affine scale: ``zero`` and ``one`` are the raw values of its anchors."""

    zero: float
    one: float

    def of(self, raw: float) -> float:
        """``raw`` on the scale. Raises ValueError where the anchors do not differ: the judge cannot tell them apart."""
        if self.one - self.zero < 1e-6:
            raise ValueError(f"the anchors {self.zero:.4f} and {self.one:.4f} leave no scale")
        return (raw - self.zero) / (self.one - self.zero)


def mean_pairwise_cosine(one: Features, other: Features) -> float:
    """Mean cosine over all pairs of a row of ``one`` and a row of ``other`` (DINO and CLIP-I of methods.md 14.1)."""
    return float(np.mean(one.astype(np.float64) @ other.astype(np.float64).T))


def mean_matched_cosine(one: Features, other: Features) -> float:
    """Mean cosine of row i with row i: a picture with its own prompt."""
    if one.shape != other.shape:
        raise ValueError(f"{one.shape} and {other.shape} do not match row by row")
    return float(np.mean(np.sum(one.astype(np.float64) * other.astype(np.float64), axis=1)))


def subject_scale(photos: Features, other_photos: Features, base_pictures: Features) -> Scale:
    """Anchors against the ``photos`` a concept was trained on: the base with the class noun, and true other photos."""
    return Scale(mean_pairwise_cosine(base_pictures, photos), mean_pairwise_cosine(other_photos, photos))


def prompt_scale(base_pictures: Features, prompts: Features, unrelated: Features) -> Scale:
    """Anchors from the base model's pictures, row i drawn from prompt i: against an unrelated prompt, and its own."""
    return Scale(mean_matched_cosine(base_pictures, unrelated), mean_matched_cosine(base_pictures, prompts))


def kid(one: Features, other: Features, degree: int = 3) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel ``(x.y / d + 1)^degree`` (KID; Binkowski et al. 2018).

    ``one`` [n, d] and ``other`` [m, d] with n, m >= 2. May be negative: it is unbiased. Not multiplied by 1000.
    """
    x, y = one.astype(np.float64), other.astype(np.float64)
    n, m, d = len(x), len(y), x.shape[1]
    if min(n, m) < 2:
        raise ValueError("KID needs at least two rows on each side")
    within_x, within_y, across = ((a @ b.T / d + 1.0) ** degree for a, b in ((x, x), (y, y), (x, y)))
    unbiased_x = (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
    unbiased_y = (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    return float(unbiased_x + unbiased_y - 2.0 * across.mean())


@dataclass(frozen=True)
class Spread:
    """A mean over ``n`` values with its sample deviation and the half width of its 95 % interval (Student)."""

    n: int
    mean: float
    deviation: float
    half_width_95: float


_STUDENT_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
)


def spread(values: list[float]) -> Spread:
    """Mean and spread of at least one value; with one value the deviation and the interval are infinite."""
    n = len(values)
    if n == 0:
        raise ValueError("nothing was measured")
    mean = float(np.mean(values))
    if n == 1:
        return Spread(1, mean, float("inf"), float("inf"))
    deviation = float(np.std(values, ddof=1))
    student = _STUDENT_975[n - 2] if n - 2 < len(_STUDENT_975) else 1.96 + 2.5 / (n - 1)
    return Spread(n, mean, deviation, student * deviation / float(np.sqrt(n)))
