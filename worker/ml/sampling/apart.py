"""Boxes that are far from where the base model would put things: a pass of the denoiser for each.

Where something stands is decided by the denoiser's self-attention, which no text inside a box reaches: asked for a cat
above a guitar, a base model that puts two things side by side draws two guitars side by side. So each box gets a pass
of its own in which its subject is alone, over latents that are moved until the box is where the base
model puts a single thing (`SINGLE`); the prediction is moved back and counts inside the box::

    p = (1 - sum_r w_r) p_ground + sum_r w_r move_r^-1( p_r( move_r(x) ) ),    w_r = (1-a) m_r

``p_ground`` is of the picture's text without subjects, masks and share are those of `worker.ml.regions`. Moving goes
around the edges, so that no noise is made up. The blend is MultiDiffusion's (Bar-Tal et al. 2023, arXiv 2302.08113,
section 4.2), to move the latents is our own. With the picture's usual passes at the end things wander back: every step
is made so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.ml.conditioning import Conditioning
from worker.ml.installation import Installation, Prepared, Untouched
from worker.ml.regions import Box, Place

if TYPE_CHECKING:
    from worker.ml.families.base import DiffusionModel
    from worker.ml.sampling.latents import ConditioningCache, Picture

SINGLE = (0.5, 0.55)
"""Where a thing that is alone stands, in shares of the picture from its upper left corner: nearly in the middle."""
THING = 0.5
"""How large it is then: a box with more room than that is moved only until the thing is inside."""


def moved_to_single(box: Box, size: tuple[int, int]) -> tuple[int, int]:
    """Cells down and to the right by which a grid [h, w] is rolled so that a thing at `SINGLE` is inside the box: its
    middle comes there, less what the box has room to spare. What is rolled around the edge is seen there, so no more
    is moved than must be.
    """
    down = _needed(SINGLE[1] - (box.y + box.height / 2), box.height)
    right = _needed(SINGLE[0] - (box.x + box.width / 2), box.width)
    return round(down * size[0]), round(right * size[1])


def _needed(away: float, side: float) -> float:
    spare = max(0.0, side - THING) / 2
    return max(0.0, away - spare) if away > 0 else min(0.0, away + spare)


class ApartPasses:
    """The passes of a batch whose pictures are drawn apart, with the same installations in the same order. Made before
    the batch's own installation is in place.
    """

    def __init__(self, model: DiffusionModel, batch: Sequence[Picture]) -> None:
        self._model, self._batch = model, batch
        self._needs: list[Installation] = [region.installation for region in batch[0].regions]
        self._untouched = Untouched(model.denoiser, model.text_encoder)
        self._prepared = {each: Prepared(model, each) for each in dict.fromkeys(self._needs)}
        self._conditioning: list[Conditioning] = []

    def condition(self, cache: ConditioningCache) -> None:
        """Compute the keys and values of every pass."""
        guided = self._batch[0].guided
        for place, installation in enumerate(self._needs):
            own = [picture.regions[place] for picture in self._batch]
            texts = [each.negative for each in own] * guided + [each.prompt for each in own]
            with self._in_place(installation):
                self._conditioning.append(cache.rows(self._model, texts, installation))

    def keep(self, index: Sequence[int], both: Sequence[int]) -> None:
        """From now on only pictures ``index`` of the batch; ``both`` are their rows, negative ones first."""
        self._batch = [self._batch[row] for row in index]
        self._conditioning = [each.rows(both) for each in self._conditioning]

    def blended(self, predicted: Tensor, scaled: Tensor, t: Tensor, progress: float) -> Tensor:
        """``predicted`` [B, C, h, w] of the ground with every box's own prediction inside it."""
        size, rows = (predicted.shape[-2], predicted.shape[-1]), len(predicted) // len(self._batch)
        whole, inside = torch.zeros_like(predicted[:, :1]), torch.zeros_like(predicted)
        for place, installation in enumerate(self._needs):
            moves = [moved_to_single(picture.regions[place].box, size) for picture in self._batch] * rows
            with self._in_place(installation):
                own = self._model.predict(_rolled(scaled, moves), t, self._conditioning[place].at(progress))
            back = _rolled(own.float(), [(-down, -right) for down, right in moves])
            weight = torch.stack([_weight(each, place, size, progress) for each in self._batch])
            weight = weight[:, None].repeat(rows, 1, 1, 1).to(predicted)
            whole, inside = whole + weight, inside + weight * back
        return (1.0 - whole) * predicted + inside

    @contextmanager
    def _in_place(self, installation: Installation) -> Iterator[None]:
        with self._untouched.in_place(), self._prepared[installation].in_place():
            yield


def _rolled(grid: Tensor, moves: Sequence[tuple[int, int]]) -> Tensor:
    """Every row of [B, C, h, w] rolled by its own cells down and to the right."""
    return torch.stack([torch.roll(row, move, (-2, -1)) for row, move in zip(grid, moves, strict=True)])


def _weight(picture: Picture, place: int, size: tuple[int, int], progress: float) -> Tensor:
    """``w_r`` [h, w]."""
    boxes = tuple(region.box for region in picture.regions)
    mask = Place(boxes[place], boxes, picture.share).mask(size)
    return (1.0 - picture.share.at(progress)) * mask
