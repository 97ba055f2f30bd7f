"""Places of their own: the one rule by which studio and benchmarks tell two things from one chimera."""

from __future__ import annotations

from itertools import product

import numpy as np

from worker.ml.evaluation.places import APART, apart, assigned, far_apart, middles_of
from worker.ml.evaluation.presence import windows
from worker.ml.regions import Box

LEFT, RIGHT, WHOLE = Box(0, 0.25, 0.5, 0.5), Box(0.5, 0.25, 0.5, 0.5), Box(0, 0, 1, 1)


def test_half_windows_are_apart_as_their_middles_are() -> None:
    """So the benchmark, which has no others, and the studio say the same."""
    halves = [box for box in windows() if box.width == 0.5]
    middles = middles_of(halves)
    distances = np.linalg.norm(middles[:, None] - middles[None], axis=-1)
    assert (apart(halves, halves) == (distances >= APART)).all()
    assert (far_apart(middles, middles) == (distances >= APART)).all()


def test_a_window_is_not_apart_from_one_whose_middle_it_has() -> None:
    corner, large = Box(0, 0, 0.5, 0.5), Box(0.25, 0.25, 0.75, 0.75)
    small = Box(0, 0, 0.2, 0.2)
    assert apart([LEFT], [RIGHT]).item()
    assert not apart([WHOLE], [corner]).item()
    assert not apart([corner], [WHOLE]).item()
    assert apart([large], [corner]).item()  # one stands partly before the other
    assert not apart([small], [Box(0.05, 0.05, 0.2, 0.2)]).item()


def test_windows_are_given_as_by_trying_everything() -> None:
    """As many things as can be placed, then the largest sum; without leave for the same window in any order."""
    random = np.random.default_rng(3)
    boxes = [box for box in windows() if box.x in (0, 0.25, 0.5) and box.y in (0, 0.25, 0.5)]
    are_apart = apart(boxes, boxes)
    for _ in range(20):
        above = random.uniform(-1, 0.5, (len(boxes), 3))
        best = max(
            (
                sum(at is not None for at in way),
                sum(above[at, thing] for thing, at in enumerate(way) if at is not None),
            )
            for way in product([None, *range(len(boxes))], repeat=3)
            if all(at is None or above[at, thing] >= 0 for thing, at in enumerate(way))
            and all(
                one is None or other is None or are_apart[one, other]
                for place, one in enumerate(way)
                for other in way[:place]
            )
        )
        found = assigned(above, are_apart)
        reached = sum(above[at, thing] for thing, at in enumerate(found) if at is not None)
        assert (sum(at is not None for at in found), round(reached, 9)) == (best[0], round(best[1], 9))


def test_eight_things_that_are_everywhere_are_placed_at_once() -> None:
    boxes = windows()
    found = assigned(np.full((len(boxes), 8), 0.5), apart(boxes, boxes))
    assert None not in found
    assert len(set(found)) == 8
