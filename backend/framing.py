"""Whether a photo cuts its subject off: told only where the background is plain enough to say so.

The picture is looked at in a grid of 48 x 48 cells. Cells of the rim's prevailing colour, and cells that follow from
them in small steps (shadows, gradients), are background; the largest connected rest is the subject. It is cut off where
it runs along an edge. What reaches two opposite edges is ground or a wall, and a busy rim tells nothing: both stay
unmentioned, because a wrong warning costs more trust than a missing one.
"""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

CELLS = 48
NEAR_PREVAILING = 40.0
"""Distance in RGB, 0..441, within which a cell of the rim has the prevailing colour."""
FAR_FROM_PREVAILING = 90.0
"""However small the steps, this far from the prevailing colour a cell is no background any more."""
SMALL_STEP = 16.0
PLAIN_SHARE = 0.6
"""Share of the rim that must have the prevailing colour."""
SUBJECT_SHARE = (0.04, 0.8)
"""Of the picture. Less is clutter, more is a close-up that is meant so."""
CUT_CELLS = 9
"""So many cells along an edge, a fifth of it, are more than a paw, a strap or the arm that holds it."""
MIDDLE_SHARE = 0.5
"""Of the middle ninth of the picture. What covers less of it (a table, a neighbour) is not what was photographed."""

Cell = tuple[int, int]


def cut_edges(picture: Image.Image) -> list[str]:
    """Edges at which the subject leaves an RGB picture: of ``left``, ``right``, ``top``, ``bottom``, at most two."""
    raw = picture.resize((CELLS, CELLS), Image.Resampling.BOX).tobytes()
    colours = {
        (x, y): (raw[3 * (y * CELLS + x)], raw[3 * (y * CELLS + x) + 1], raw[3 * (y * CELLS + x) + 2])
        for y in range(CELLS)
        for x in range(CELLS)
    }
    rim = [cell for cell in colours if not 0 < cell[0] < CELLS - 1 or not 0 < cell[1] < CELLS - 1]
    prevailing = _prevailing([colours[cell] for cell in rim])
    plain = {cell for cell in rim if _distance(colours[cell], prevailing) <= NEAR_PREVAILING}
    if len(plain) < PLAIN_SHARE * len(rim):
        return []
    background = _grown(plain, colours, prevailing)
    subject = _largest(set(colours) - background)
    if not SUBJECT_SHARE[0] <= len(subject) / len(colours) <= SUBJECT_SHARE[1]:
        return []
    middle = range(CELLS // 3, 2 * CELLS // 3)
    if sum(x in middle and y in middle for x, y in subject) < MIDDLE_SHARE * len(middle) ** 2:
        return []
    last = CELLS - 1
    touched = {
        "left": sum(x == 0 for x, _ in subject),
        "right": sum(x == last for x, _ in subject),
        "top": sum(y == 0 for _, y in subject),
        "bottom": sum(y == last for _, y in subject),
    }
    if (touched["left"] and touched["right"]) or (touched["top"] and touched["bottom"]):
        return []
    return [edge for edge, cells in touched.items() if cells >= CUT_CELLS]


def _prevailing(colours: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    """The colour that most of the others are near to."""
    return max(
        colours, key=lambda one: sum(_distance(one, other) <= NEAR_PREVAILING / 2 for other in colours)
    )


def _distance(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5)


def _grown(
    seeds: set[Cell], colours: dict[Cell, tuple[int, int, int]], prevailing: tuple[int, int, int]
) -> set[Cell]:
    """The seeds and every cell that is reached from them in small steps of colour."""
    found, waiting = set(seeds), list(seeds)
    while waiting:
        cell = waiting.pop()
        for neighbour in _neighbours(cell):
            if (
                neighbour in colours
                and neighbour not in found
                and _distance(colours[cell], colours[neighbour]) <= SMALL_STEP
                and _distance(colours[neighbour], prevailing) <= FAR_FROM_PREVAILING
            ):
                found.add(neighbour)
                waiting.append(neighbour)
    return found


def _largest(cells: set[Cell]) -> set[Cell]:
    """The largest connected part."""
    largest: set[Cell] = set()
    while cells:
        part, waiting = set(), [cells.pop()]
        while waiting:
            cell = waiting.pop()
            part.add(cell)
            reached = cells.intersection(_neighbours(cell))
            cells -= reached
            waiting.extend(reached)
        if len(part) > len(largest):
            largest = part
    return largest


def _neighbours(cell: Cell) -> Iterable[Cell]:
    x, y = cell
    return ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1))
