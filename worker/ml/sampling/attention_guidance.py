"""Attention guidance: latents move, early on, so that the text reads every concept somewhere in the picture.

Attend-and-Excite (Chefer et al., SIGGRAPH 2023, arXiv 2301.13826, section 3). Before a solver step the latents become
``z - a grad L(z)`` with

    L = 1 - min over words s of max over positions p of M_s[p]

``M_s`` the smoothed share of word s in the attention of each position (`worker.ml.attention_maps`): the least attended
word pulls. ``a`` is the paper's 20 times what was asked, times ``sqrt`` of a factor that falls straight from 1 to 1/2
over the steps; only the first half of the steps is moved. Solvers whose latents are larger than what the denoiser reads
(Euler) are moved by as much more.

Each picture is moved by a pass of its own, forth and back, on its prompt alone: memory does not grow with the batch,
and a picture depends on its own recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.ml.attention_maps import watched, word_maps
from worker.ml.conditioning import Conditioning
from worker.ml.families.base import DiffusionModel
from worker.ml.word_positions import Word

STEP = 20.0
"""The paper's step, which a scale of 1 stands for."""
GUIDED = 0.5
"""Share of the solver steps before which latents are moved: the paper's 25 of 50."""


@dataclass(frozen=True)
class AttentionGuidance:
    """``scale`` 1 is the paper's step; ``words`` are the concepts' positions in the prompt, at least one."""

    scale: float
    words: tuple[Word, ...]


def step_size(scale: float, progress: float) -> float:
    """``a`` at ``progress``, 0 being the first step and 1 the last; 0 where nothing is moved any more."""
    return STEP * scale * (1.0 - 0.5 * progress) ** 0.5 if progress < GUIDED else 0.0


def least_attended(attended: Tensor, words: Sequence[Word]) -> Tensor:
    """Loss of maps [h, w, T], in [0, 1]: what the least attended word lacks where it is attended most."""
    most: Tensor = word_maps(attended, words).flatten(1).amax(1)
    return 1.0 - most.min()


def moved(
    model: DiffusionModel,
    scheduler: Any,
    latents: Tensor,
    t: Tensor,
    *,
    conditioning: Conditioning,
    asked: Sequence[AttentionGuidance | None],
    progress: float,
) -> Tensor:
    """Latents [B, C, h, w] before the step at ``t``: rows with guidance moved, the others as they are.

    The last B rows of ``conditioning`` are the prompts'.
    """
    rows = [row for row, one in enumerate(asked) if one is not None and step_size(one.scale, progress) > 0.0]
    if not rows:
        return latents
    first = len(conditioning.kv) - len(latents)
    shrunk = scheduler.scale_model_input(torch.ones((), device=latents.device), t)
    found = latents.clone()
    for row in rows:
        guidance = asked[row]
        assert guidance is not None
        read = scheduler.scale_model_input(latents[row : row + 1], t).float()
        slope = gradient(model, read, t.to(model.device), conditioning.rows([first + row]), guidance.words)
        found[row] -= step_size(guidance.scale, progress) * slope[0] / shrunk
    return found


def gradient(
    model: DiffusionModel, read: Tensor, t: Tensor, conditioning: Conditioning, words: Sequence[Word]
) -> Tensor:
    """``dL / d read`` of one picture, ``read`` [1, C, h, w] being what the denoiser reads."""
    with torch.enable_grad():
        leaf = read.detach().requires_grad_()
        loss = least_attended(watched(model, leaf, t, conditioning)[0], words)
        (slope,) = torch.autograd.grad(loss, leaf)
    return slope
