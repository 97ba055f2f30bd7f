"""Places of their own: things count as there together only where each has a window apart from those of the others, so
that one chimera, which is like two things in the same window, does not count twice.

Studio and benchmarks (`worker.ml.evaluation.presence`, `benchmarks.presence`) decide by this one rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from worker.ml.regions import Box

APART = 0.22
"""Least distance between the middles of two places, in shares of the side."""
ROUNDING = 1e-9


def middles_of(boxes: Sequence[Box]) -> NDArray[np.float64]:
    """[boxes, 2], across and down, in shares of the picture."""
    return np.array([(box.x + box.width / 2, box.y + box.height / 2) for box in boxes]).reshape(-1, 2)


def far_apart(middles: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether places with these middles ([n, 2] and [m, 2]) are apart, [n, m]; for windows of one size."""
    distances = np.linalg.norm(middles[:, None] - others[None], axis=-1)
    found: NDArray[np.bool_] = distances >= APART
    return found


def apart(boxes: Sequence[Box], others: Sequence[Box]) -> NDArray[np.bool_]:
    """Whether windows of any size are apart, [boxes, others]: their middles are, and neither window has the other's
    middle inside. They may cover each other otherwise: a subject may stand partly before another. Of windows of half
    the side, an eighth from each other, it says the same as `far_apart`.
    """
    middles, further = middles_of(boxes), middles_of(others)
    return far_apart(middles, further) & ~_inside(further, boxes).T & ~_inside(middles, others)


def _inside(points: NDArray[np.float64], boxes: Sequence[Box]) -> NDArray[np.bool_]:
    """Which points [n, 2] lie in which boxes, [n, boxes]; what lies on an edge does not."""
    halves = np.array([(box.width, box.height) for box in boxes]).reshape(-1, 2) / 2
    away = np.abs(points[:, None] - middles_of(boxes)[None])
    found: NDArray[np.bool_] = np.all(away < halves[None] - ROUNDING, axis=-1)
    return found


def assigned(above: NDArray[np.floating], are_apart: NDArray[np.bool_]) -> list[int | None]:
    """A window for each thing, or None: as many things as can be placed pairwise apart, of those ways the one with the
    largest sum. ``above`` [windows, things]: what a thing reaches above its threshold, below 0 where it is not there;
    ``are_apart`` [windows, windows].
    """
    # Ways that leave the same windows free differ only in what they have reached: the best of each is enough.
    everywhere = (1 << len(above)) - 1
    free_beside = [sum(1 << int(at) for at in np.flatnonzero(row)) for row in are_apart]
    ways: dict[int, tuple[int, float, tuple[int | None, ...]]] = {everywhere: (0, 0.0, ())}
    for column in above.T:
        candidates = [(int(at), float(column[at])) for at in np.flatnonzero(column >= 0)]
        further: dict[int, tuple[int, float, tuple[int | None, ...]]] = {}
        for free, (count, total, chosen) in ways.items():
            tries = [(free, (count, total, (*chosen, None)))] + [
                (free & free_beside[at], (count + 1, total + reached, (*chosen, at)))
                for at, reached in candidates
                if free >> at & 1
            ]
            for left, way in tries:
                if left not in further or way[:2] > further[left][:2]:
                    further[left] = way
        ways = further
    return list(max(ways.values(), key=lambda way: way[:2])[2])
