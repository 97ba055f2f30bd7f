"""Who is there: is each concept of a picture to be seen in it, and in its own place?

For a concept with photos P the judge of individuals gives a crop of the picture the mean cosine with P. It is put on
the scale of subject similarity (`protocol`): 0 is the base model's picture with class nouns alone, looked at in the
same way, 1 the photos among themselves. A concept with a region is looked at there; others in windows of half, three
quarters and all of the picture's sides, of which the one that is most like it counts, in the base's picture as well,
so that the freedom of choice is the same on both sides. (Cross-attention maps, `worker.ml.evaluation.word_attention`,
say where the word acts, not whether it is recognised; they are evidence beside the verdict.)

At or above ``PRESENT`` a concept is there: the middle between the anchors, where the picture is as much like the
concept as like the base's own of the class. Concepts without regions are there only in windows apart from one another
and from the regions of those that are there (`worker.ml.evaluation.places`): one fused animal is not two, but the
concept that it is more like; who has no other window is fused. Below ``PRESENT`` a concept is fused where another
concept of the picture reaches it in that place, else missing.

Where photos vary so much that the base's picture is as much like them as they are like each other, there is no scale,
and whatever is drawn says nothing: it is unknown whether the concept is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.ml.evaluation.panel import Panel
from worker.ml.evaluation.places import apart, assigned
from worker.ml.evaluation.protocol import Scale
from worker.ml.regions import Box

PRESENT = 0.5
_PRECEDENCE = {"unknown": 1, "present": 2}
"""Of a concept in several regions the state counts that comes first; before these it is missing or fused."""
SIDES = (0.5, 0.75, 1.0)
"""Sides of the windows, in shares of the picture's."""
STRIDE = 0.125


@dataclass(frozen=True)
class Sought:
    """A concept that should be there: features of its photos [n, d], at least two, and its regions if it has any."""

    photos: Tensor
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What was found of one concept. ``score`` is None where the anchors leave no scale, and the state unknown."""

    state: Literal["present", "fused", "missing", "unknown"]
    score: float | None
    box: Box


def windows() -> tuple[Box, ...]:
    """Where a concept without a region is looked for."""
    found = []
    for side in SIDES:
        steps = round((1.0 - side) / STRIDE) + 1
        corners = [STRIDE * step for step in range(steps)]
        found += [Box(x, y, side, side) for y in corners for x in corners]
    return tuple(found)


def crop(pixels: Tensor, box: Box) -> Tensor:
    """The part [1, 3, h, w] of a picture [3, H, W] that lies in the box, at least one pixel."""
    height, width = pixels.shape[-2:]
    top, left = (min(int(edge * side), side - 1) for edge, side in ((box.y, height), (box.x, width)))
    bottom = max(top + 1, round((box.y + box.height) * height))
    right = max(left + 1, round((box.x + box.width) * width))
    return pixels[None, :, top:bottom, left:right]


def likeness(panel: Panel, pixels: Tensor, boxes: Sequence[Box], photos: Tensor) -> Tensor:
    """Mean cosine of each crop with the photos, [boxes]; ``pixels`` [3, H, W] in [-1, 1]."""
    features = torch.cat([panel.subject_features(crop(pixels, box)) for box in boxes])
    return (features.double() @ photos.double().T).mean(1)


def look(panel: Panel, pixels: Tensor, base: Tensor, sought: Sequence[Sought]) -> list[Seen]:
    """``pixels`` [3, H, W] is the picture, ``base`` the base model's with class nouns alone, both in [-1, 1]. A concept
    in several regions is as present as in the least of them.
    """
    view = _View(panel, pixels, base)
    found: dict[int, Seen] = {}
    for index, one in enumerate(sought):
        if one.boxes:
            seen = [view.in_box(box, one.photos, _rivals(sought, index)) for box in one.boxes]
            found[index] = min(seen, key=lambda each: (_PRECEDENCE.get(each.state, 0), each.score or 0.0))
    taken = [box for index, seen in found.items() if seen.state == "present" for box in sought[index].boxes]
    free = [index for index, one in enumerate(sought) if not one.boxes]
    found |= zip(free, view.anywhere(sought, free, taken), strict=True)
    return [found[index] for index in range(len(sought))]


def _rivals(sought: Sequence[Sought], index: int) -> list[Tensor]:
    return [other.photos for place, other in enumerate(sought) if place != index]


@dataclass(frozen=True)
class _View:
    panel: Panel
    pixels: Tensor
    base: Tensor

    def in_box(self, box: Box, photos: Tensor, rivals: Sequence[Tensor]) -> Seen:
        _, scores = self.scores((box,), photos)
        if scores is None:
            return Seen("unknown", None, box)
        score = float(scores[0])
        if score >= PRESENT:
            return Seen("present", score, box)
        return Seen("fused" if self._anybody(box, rivals) else "missing", score, box)

    def anywhere(self, sought: Sequence[Sought], free: Sequence[int], taken: Sequence[Box]) -> list[Seen]:
        """The concepts at ``free`` among the sought, each in the window that is left to it beside the others and what
        is ``taken``; who reaches `PRESENT`, but where no window is left, is fused.
        """
        everywhere = windows()
        scores = [self.scores(everywhere, sought[index].photos) for index in free]
        above = np.full((len(everywhere), len(free)), -1.0)
        allowed = apart(everywhere, taken).all(axis=1)
        for column, (_, own) in enumerate(scores):
            if own is not None:
                above[:, column] = np.where(allowed, own - PRESENT, -1.0)
        given = assigned(above, apart(everywhere, everywhere))
        found = []
        for index, (best, own), at in zip(free, scores, given, strict=True):
            box = everywhere[best]
            if own is None:
                found.append(Seen("unknown", None, box))
            elif at is not None:
                found.append(Seen("present", float(own[at]), everywhere[at]))
            else:
                fused = own[best] >= PRESENT or self._anybody(box, _rivals(sought, index))
                found.append(Seen("fused" if fused else "missing", float(own[best]), box))
        return found

    def _anybody(self, box: Box, photos: Sequence[Tensor]) -> bool:
        """Whether one of these concepts is in this box."""
        scores = [self.scores((box,), each)[1] for each in photos]
        return any(score is not None and score[0] >= PRESENT for score in scores)

    def scores(self, boxes: Sequence[Box], photos: Tensor) -> tuple[int, NDArray[np.float64] | None]:
        """The box that is most like the photos, and what each reaches [boxes]: None where there is no scale."""
        raw = likeness(self.panel, self.pixels, boxes, photos)
        zero = float(likeness(self.panel, self.base, boxes, photos).max())
        products, count = photos.double() @ photos.double().T, len(photos)
        one = float((products.sum() - products.trace()) / (count * (count - 1)))
        scale, best = Scale(zero, one), int(raw.argmax())
        try:
            return best, np.array([scale.of(float(each)) for each in raw])
        except ValueError:
            return best, None
