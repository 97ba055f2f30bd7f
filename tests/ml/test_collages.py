"""Collages of Cut-Mix (methods.md 9)."""

from __future__ import annotations

import torch

from worker.ml.training.collages import collage_captions, halves


def test_the_middles_stand_side_by_side() -> None:
    left, right = torch.arange(8.0).expand(1, 2, 8), 10 + torch.arange(8.0).expand(1, 2, 8)
    assert halves(left, right)[0, 0].tolist() == [2, 3, 4, 5, 12, 13, 14, 15]


def test_an_odd_width_stays_as_wide() -> None:
    left, right = torch.zeros(4, 3, 5), torch.ones(4, 3, 5)
    assert halves(left, right)[0, 0].tolist() == [0, 0, 1, 1, 1]


def test_the_caption_says_where() -> None:
    told, untold = collage_captions("a <stark> dog", "a <wolf> cat")
    assert told == "photo of a <stark> dog on the left and a <wolf> cat on the right"
    assert untold == "photo of a <stark> dog and a <wolf> cat"
