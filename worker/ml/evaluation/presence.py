"""Who is there: is each concept of a picture to be seen in it, and in its own place?

For a concept with photos P the judge of individuals gives a crop of the picture the mean cosine with P. It is put on
the scale of subject similarity (`protocol`): 0 is the base model's picture with class nouns alone, looked at in the
same way, 1 the photos among themselves. A concept with a region is looked at there; others in windows of half, three
quarters and all of the picture's sides, of which the one that is most like it counts, in the base's picture as well,
so that the freedom of choice is the same on both sides. (Cross-attention maps, `worker.ml.evaluation.word_attention`,
say where the word acts, not whether it is recognised; they are evidence beside the verdict.)

At or above ``PRESENT`` a concept is there: the middle between the anchors, where the picture is as much like the
concept as like the base's own of the class. Below it the concept is fused where another concept of the picture
reaches it in that place, else missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worker.ml.evaluation.panel import Panel
from worker.ml.evaluation.protocol import Scale
from worker.ml.regions import Box

PRESENT = 0.5
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
    """What was found of one concept. ``score`` is None where the anchors do not differ."""

    state: Literal["present", "fused", "missing"]
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
    everywhere, view = windows(), _View(panel, pixels, base)
    found = []
    for index, one in enumerate(sought):
        rivals = [other.photos for place, other in enumerate(sought) if place != index]
        if one.boxes:
            seen = [view.state((box,), one.photos, rivals) for box in one.boxes]
            found.append(min(seen, key=lambda each: (each.state == "present", each.score or 0.0)))
        else:
            found.append(view.state(everywhere, one.photos, rivals))
    return found


@dataclass(frozen=True)
class _View:
    panel: Panel
    pixels: Tensor
    base: Tensor

    def state(self, boxes: Sequence[Box], photos: Tensor, rivals: Sequence[Tensor]) -> Seen:
        score, box = self.score(boxes, photos)
        if score is not None and score >= PRESENT:
            return Seen("present", score, box)
        others = [self.score((box,), rival)[0] for rival in rivals]
        fused = any(other is not None and other >= PRESENT for other in others)
        return Seen("fused" if fused else "missing", score, box)

    def score(self, boxes: Sequence[Box], photos: Tensor) -> tuple[float | None, Box]:
        """On the scale, with the box that is most like the photos."""
        raw = likeness(self.panel, self.pixels, boxes, photos)
        zero = float(likeness(self.panel, self.base, boxes, photos).max())
        products, count = photos.double() @ photos.double().T, len(photos)
        one = float((products.sum() - products.trace()) / (count * (count - 1)))
        try:
            return Scale(zero, one).of(float(raw.max())), boxes[int(raw.argmax())]
        except ValueError:
            return None, boxes[int(raw.argmax())]
