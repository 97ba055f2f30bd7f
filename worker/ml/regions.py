"""Regions of a picture: further keys and values that act inside boxes, in one pass of the denoiser.

The output of a cross-attention at a query position is (methods.md 13.5; the boxes are those of region-controlled
sampling, Mix-of-Show, Gu et al. 2023, arXiv 2305.18292, section 3.3, which replaces inside a box, share 0)::

    (1 - (1-a) sum_r m_r) attn(q; K_glob, V_glob) + (1-a) sum_r m_r attn(q; K_r, V_r)

``m_r`` is the share of the position's cell that lies in box ``r``: the box mask resized by area to the layer's own
grid, exactly and at any size. Where boxes overlap so that the shares come to more than 1 they are divided by their
sum. ``a`` is the base share, what the global prompt keeps inside a box; it may change from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.ml.errors import BaseUnusable

if TYPE_CHECKING:
    from worker.ml.conditioning import TextKV

Size = tuple[int, int]
"""Height and width in cells."""


@dataclass(frozen=True)
class Box:
    """A rectangle in shares of the picture: left edge, top edge, width and height, all in [0, 1]."""

    x: float
    y: float
    width: float
    height: float

    def coverage(self, size: Size) -> Tensor:
        """Share of each cell of a grid that lies in the box: float32 [h, w] in [0, 1]."""
        down = _covered(self.y, self.y + self.height, size[0])
        across = _covered(self.x, self.x + self.width, size[1])
        return down[:, None] * across[None, :]


def _covered(begin: float, end: float, cells: int) -> Tensor:
    """Share of each of ``cells`` equal intervals of [0, 1] that lies between ``begin`` and ``end``."""
    edges = torch.arange(cells + 1, dtype=torch.float64)
    inside = edges.clamp(begin * cells, end * cells)
    return (inside[1:] - inside[:-1]).float()


@dataclass(frozen=True)
class BaseShare:
    """The base share ``a`` over the steps: ``first`` in the first, ``last`` in the last, straight in between."""

    first: float = 0.0
    last: float = 0.0

    def at(self, progress: float) -> float:
        """``progress`` is 0 in the first step and 1 in the last."""
        return self.first + (self.last - self.first) * progress


USUAL_SHARE = BaseShare()


@dataclass(frozen=True)
class Place:
    """Where a region of one picture acts: its box, all boxes of the picture (itself among them), the base share."""

    box: Box
    boxes: tuple[Box, ...]
    share: BaseShare

    def mask(self, size: Size) -> Tensor:
        """``m_r`` [h, w]: the box's coverage, shared fairly with the boxes it overlaps."""
        together = sum((box.coverage(size) for box in self.boxes), torch.zeros(size))
        return self.box.coverage(size) / together.clamp(min=1.0)


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of a batch. ``kv``: a row a region; ``rows``: to which row of the batch it belongs, ascending."""

    kv: TextKV
    rows: tuple[int, ...]
    places: tuple[Place, ...]
    progress: float = 0.0
    _masks: dict[Size, Tensor] = field(default_factory=dict, repr=False)

    def at(self, progress: float) -> Regions:
        """The same in another step: 0 is the first, 1 the last."""
        return replace(self, progress=progress)

    def of_rows(self, index: Sequence[int]) -> Regions | None:
        """Those of rows ``index`` of the batch, which become rows 0, 1, ... in this order; None without any."""
        chosen = [
            (region, row)
            for row, old in enumerate(index)
            for region, owner in enumerate(self.rows)
            if owner == old
        ]
        if not chosen:
            return None
        kept = [region for region, _ in chosen]
        places = tuple(self.places[region] for region in kept)
        return Regions(self.kv.rows(kept), tuple(row for _, row in chosen), places, self.progress)

    @staticmethod
    def concatenated(parts: Sequence[tuple[Regions | None, int]]) -> Regions | None:
        """Regions of batches one after another; with each the number of rows of its batch."""
        first, found = 0, []
        for regions, count in parts:
            if regions is not None:
                found.append(replace(regions, rows=tuple(first + row for row in regions.rows)))
            first += count
        if not found:
            return None
        kv = found[0].kv.concatenated([each.kv for each in found])
        rows = tuple(row for each in found for row in each.rows)
        return Regions(kv, rows, tuple(place for each in found for place in each.places), found[0].progress)

    def weights(self, size: Size) -> Tensor:
        """``(1-a) m_r`` of every region on a grid, in this step: [R, h * w, 1], float32, on the device of ``kv``."""
        device = self.kv.keys[0].device
        if size not in self._masks:
            masks = torch.stack([place.mask(size) for place in self.places]).flatten(1)[..., None]
            self._masks[size] = masks.to(device)
        kept = torch.tensor([1.0 - place.share.at(self.progress) for place in self.places], device=device)
        return self._masks[size] * kept[:, None, None]


def grid(size: Size, positions: int) -> Size:
    """Height and width of a layer with so many positions, the latents being ``size``: sides are halved, odd ones
    rounded up, as strided convolutions of kernel 3 and padding 1 do.

    Raises `BaseUnusable` where no halving has that many positions.
    """
    height, width = size
    while height * width > positions and (height, width) != (1, 1):
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != positions:
        raise BaseUnusable("This base model's layers have shapes on which regions cannot be placed.")
    return height, width
