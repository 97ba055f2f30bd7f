"""Which boxes are where a base model puts things by itself."""

from __future__ import annotations

import pytest

from backend.services.box_layout import Edges, is_usual


@pytest.mark.parametrize(
    ("boxes", "usual"),
    [
        ([(0, 0, 1, 1)], True),
        ([(0.1, 0.2, 0.8, 0.7)], True),
        ([(0.0, 0.0, 0.3, 1.0)], False),
        ([(0, 0, 0.5, 1), (0.5, 0, 0.5, 1)], True),
        ([(0.5, 0, 0.5, 1), (0, 0, 0.5, 1)], True),
        ([(0.05, 0.3, 0.4, 0.6), (0.55, 0.25, 0.4, 0.6)], True),
        ([(0, 0, 1, 0.5), (0, 0.5, 1, 0.5)], False),
        ([(0, 0, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)], False),
        ([(0.05, 0.6, 0.35, 0.35), (0.6, 0.6, 0.35, 0.35)], False),
        ([(0, 0, 0.3, 1), (0.35, 0, 0.3, 1), (0.7, 0, 0.3, 1)], True),
        ([(0, 0, 0.6, 1), (0.6, 0, 0.2, 1), (0.8, 0, 0.2, 1)], False),
    ],
    ids=[
        "all", "middle", "narrow-left", "columns", "swapped", "inside-columns", "above-one-another", "corners",
        "low-corners", "three-columns", "three-unequal",
    ],
)  # fmt: skip
def test_usual(boxes: list[Edges], usual: bool) -> None:
    assert is_usual(boxes) is usual
    assert is_usual(boxes[::-1]) is usual
