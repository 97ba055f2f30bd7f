"""Where the subject of a photo is, so that a training need not learn what is around it.

Masked training counts the loss where the subject is and less, or nothing, beside it (Mix-of-Show, Gu et al., NeurIPS
2023, arXiv 2305.18292, section 3.2; other trainers, from masks that people draw). Here nobody draws: the base model
says where it reads the class noun. A photo's latents are noised to the levels `LEVELS` and read with "photo of a dog".
The share of the noun in the attention of each position (`worker.ml.attention_maps`, of "What the DAAM", Tang et al.,
ACL 2023, arXiv 2210.04885), averaged over the levels and divided by its maximum, is cut softly between `AROUND` and
`INSIDE`. Its grid is coarse, so a mask reaches a little over the subject's edge, which is then learned too.

There is no mask for a style, and none where the base model could not read the noun (`reads`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from backend.schemas.bases import BaseDescription
from worker.ml.attention_maps import watched
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.sampling.schedulers import build_scheduler
from worker.ml.streams import rng
from worker.ml.training.augmentation import Draw, placed
from worker.ml.training.captions import with_article
from worker.ml.word_positions import tokens_before

SCHEDULE, LEVELS = 10, slice(2, 9)
"""Of so many solver steps those in the middle: above them nothing is seen, below them everything looks like noise."""
AROUND, INSIDE = 0.12, 0.35
"""Shares of the maximum; at the first a position is wholly beside the subject, from the second on wholly on it. Chosen
by eye on photos of six sample subjects.
"""
HALF, MARGIN = 0.5, 0.12
"""From where on a position is part of the subject's outline, and the room around it in shares of its size."""
FEWEST_CELLS = 1.0
"""A view in which less of the subject is left counts as it is."""


@dataclass(frozen=True, eq=False)
class SubjectMasks:
    """``masks``: of each photo [1, S, S] in [0, 1], 1 where the subject is. ``unmasked_weight`` in [0, 1): what the
    loss counts beside it.
    """

    masks: tuple[Tensor, ...]
    unmasked_weight: float

    def weighed(self, mask: Tensor, photo: int, draw: Draw) -> Tensor:
        """``mask`` [1, h, w] of the view that ``draw`` made of a photo, lowered beside the subject."""
        cell = self.masks[photo].shape[-1] // mask.shape[-1]
        inside = functional.avg_pool2d(placed(self.masks[photo], draw), cell).to(mask)
        if float((mask * inside).sum()) < FEWEST_CELLS:
            return mask
        return mask * (self.unmasked_weight + (1.0 - self.unmasked_weight) * inside)

    def close_up(self, photos: Sequence[Image.Image]) -> tuple[list[Image.Image], SubjectMasks]:
        """The square ``photos`` cut to squares around their subjects, with the masks of these."""
        squares = [_square_around(mask[0] >= HALF) for mask in self.masks]
        shown, masks = [], []
        for photo, mask, (left, top, side) in zip(photos, self.masks, squares, strict=True):
            size = mask.shape[-1]
            edges = (left, top, left + side, top + side)
            shown.append(photo.crop(tuple(round(edge * photo.width / size) for edge in edges)))  # type: ignore[arg-type]
            cut = mask[None, :, top : top + side, left : left + side]
            masks.append(functional.interpolate(cut, size=(size, size), mode="bilinear")[0])
        return shown, SubjectMasks(tuple(masks), self.unmasked_weight)


def reads(base: BaseDescription, class_noun: str) -> bool:
    """Whether the base model knows the noun, as far as can be told: it names none, or this one among them."""
    known = {noun.casefold() for noun in base.class_nouns}
    return bool(class_noun) and (not known or class_noun.casefold() in known)


@torch.no_grad()
def subject_masks(
    model: DiffusionModel,
    photos: Sequence[Tensor],
    class_noun: str,
    *,
    unmasked_weight: float,
    seed: int,
    stream: str,
    run: Run,
) -> SubjectMasks:
    """``photos`` [3, S, S] in [-1, 1] at the base model's resolution. A pure function of photos, noun and seed.
    ``run.step("masks", ...)`` after each photo.
    """
    text = f"photo of {with_article(class_noun)}"
    prompt = Prompt(text, ())
    noun = range(
        tokens_before(model, prompt, len(text) - len(class_noun)), tokens_before(model, prompt, len(text))
    )
    known = text_kv(model, [prompt])
    scheduler = build_scheduler("ddim", model.scheduler_config, SCHEDULE)
    levels = scheduler.timesteps[LEVELS].to(model.device)
    found = []
    for number, pixels in enumerate(photos):
        latents = model.encode_images(pixels[None]).float()
        dice = rng(seed, stream, number)
        noise = torch.randn((len(levels), *latents.shape[1:]), generator=dice).to(latents)
        noisy = scheduler.add_noise(latents.expand(len(levels), -1, -1, -1), noise, levels)
        attended = watched(model, noisy, levels, known.rows([0] * len(levels)))
        share = attended[..., list(noun)].sum(-1).mean(0, keepdim=True)
        found.append(_cut(share, pixels.shape[-1]).cpu())
        run.step("masks", number + 1, len(photos))
    return SubjectMasks(tuple(found), unmasked_weight)


def _square_around(inside: Tensor) -> tuple[int, int, int]:
    """Left, top and side of the square in [S, S] around what is true, with a `MARGIN`; all of it where nothing is."""
    size = inside.shape[-1]
    if not bool(inside.any()):
        return 0, 0, size
    rows, columns = (inside.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    widest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = min(size, round(widest * (1.0 + 2.0 * MARGIN)))
    left, top = (
        min(max(0, (found[0] + found[-1] + 1 - side) // 2), size - side) for found in (columns, rows)
    )
    return left, top, side


def _cut(share: Tensor, size_px: int) -> Tensor:
    """A map [1, h, w] >= 0 -> [1, S, S] in [0, 1]."""
    wide = functional.interpolate(share[None], size=(size_px, size_px), mode="bicubic")[0].clamp(min=0.0)
    return ((wide / wide.max() - AROUND) / (INSIDE - AROUND)).clamp(0.0, 1.0)
