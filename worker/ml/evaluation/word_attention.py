"""Where the word of each concept acts in a finished picture, by cross-attention maps.

The picture's latents are noised to `LEVELS` levels, evenly over the schedule, and read by the denoiser with the
picture's own prompt, its weights in place. The maps of these passes are averaged, and each word gets its smoothed share
in the attention of each position (`worker.ml.attention_maps`, as in Attend-and-Excite, Chefer et al. 2023, arXiv
2301.13826). It says where a word acts, not whether what is there is like the photos: that is the judge's
(`worker.ml.evaluation.presence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.ml.attention_maps import watched, word_maps
from worker.ml.conditioning import text_kv
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import installed
from worker.ml.regions import Box
from worker.ml.sampling.latents import Picture
from worker.ml.sampling.schedulers import build_scheduler
from worker.ml.word_positions import Word

LEVELS = 4
MASS = 0.6
"""Share of a word's map that lies in the box where it acts."""
SAME_PLACE = 0.5
"""Words act in the same place where their boxes have so much in common, of what they cover together."""


@dataclass(frozen=True)
class Acting:
    """``share`` of the attention that a word has where it has most, in [0, 1], and the ``box`` where it acts."""

    share: float
    box: Box


@torch.no_grad()
def acting(model: DiffusionModel, picture: Picture, words: Sequence[Word], pixels: Tensor) -> list[Acting]:
    """Of each word of the prompt of ``picture``; ``pixels`` [3, H, W] in [-1, 1] is what it became."""
    scheduler = build_scheduler("ddim", model.scheduler_config, LEVELS)
    latents = model.encode_images(pixels[None]).float()
    generator = torch.Generator("cpu").manual_seed(picture.seed)
    noise = torch.randn((LEVELS, *latents.shape[1:]), generator=generator).to(latents)
    levels = scheduler.timesteps.to(model.device)
    noisy = scheduler.add_noise(latents.expand(LEVELS, -1, -1, -1), noise, levels)
    with installed(model, picture.installation):
        read = watched(model, noisy, levels, text_kv(model, [picture.prompt]).rows([0] * LEVELS)).mean(0)
    return [Acting(float(plane.max()), smallest_box(plane)) for plane in word_maps(read, words).cpu()]


def smallest_box(plane: Tensor) -> Box:
    """The smallest box of whole cells with `MASS` of a map [h, w] >= 0; of equal ones that with the most."""
    height, width = plane.shape
    sums = torch.zeros(height + 1, width + 1, dtype=torch.float64)
    sums[1:, 1:] = plane.double().cumsum(0).cumsum(1)
    top, bottom = torch.triu_indices(height + 1, height + 1, 1)
    left, right = torch.triu_indices(width + 1, width + 1, 1)
    rows = sums[bottom] - sums[top]
    inside = rows[:, right] - rows[:, left]
    area = (bottom - top)[:, None] * (right - left)[None, :]
    enough = inside >= MASS * sums[-1, -1]
    smallest = area[enough].min()
    best = int(torch.where(enough & (area == smallest), inside, -1.0).argmax())
    row, column = divmod(best, len(left))
    x, y = float(left[column]) / width, float(top[row]) / height
    return Box(x, y, float(right[column]) / width - x, float(bottom[row]) / height - y)


def in_common(one: Box, other: Box) -> float:
    """What two boxes share, of what they cover together: intersection over union, in [0, 1]."""
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    both = max(0.0, across) * max(0.0, down)
    return both / (one.width * one.height + other.width * other.height - both)
