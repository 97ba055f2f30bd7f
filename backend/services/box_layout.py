"""Whether boxes are where a base model would put their subjects by itself. Pure.

Asked for several things, text-to-image models put them side by side, a little below the middle (seen on toyworld and
in what diffusion models were taught with: photographs of things on grounds). Inside boxes that agree with this, other
texts are enough; boxes elsewhere need passes of their own (`worker.ml.sampling.apart`).
"""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, TOP, BOTTOM = 0.8, 0.3, 0.8
"""A column's place for a thing: its share of the column's width, in the middle, and from where to where it reaches."""
COVERED = 0.5
"""The share of that place that a box has to cover."""


Edges = tuple[float, float, float, float]
"""Left, top, width and height of a box in shares of the picture."""


def is_usual(boxes: Sequence[Edges]) -> bool:
    """Whether each of n boxes, from left to right, covers `COVERED` of the place for a thing in the picture's n-th
    part.
    """
    ordered = sorted(boxes, key=lambda box: box[0] + box[2] / 2)
    return all(_covered(box, place, len(ordered)) >= COVERED for place, box in enumerate(ordered))


def _covered(box: Edges, place: int, count: int) -> float:
    x, y, width, height = box
    margin = (1.0 - WIDTH) / 2
    left, right = (place + margin) / count, (place + 1 - margin) / count
    across = max(0.0, min(x + width, right) - max(x, left)) / (right - left)
    down = max(0.0, min(y + height, BOTTOM) - max(y, TOP)) / (BOTTOM - TOP)
    return across * down
