"""Unmix: in a collage each subject's word is to be read in its own half (SVDiff, Han et al., ICCV 2023, arXiv
2303.11305, section 3.3; methods.md 9).

    L_unmix = sum over layers l of mean over positions ((A_l[i] M_j)^2 + (A_l[j] M_i)^2)

``A_l[i]``: share of the placeholder of concept i in the attention of each position of cross-attention layer l, the mean
of its heads; ``M_j``: the half in which concept j stands, resized by area to the layer's own grid. The class noun
behind the placeholder is not counted, as in the paper: it may be the same for both.

Only rows that are collages of photos pay for maps: the pass is the usual one and leaves its queries behind, and maps
are made of theirs alone. Captions of prior images have no placeholder, so their collages have no such term. Keys are
those of the pass, so where the start token's are detached they stay so.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from backend.schemas.weights import TaughtToken
from worker.ml.attention_maps import probabilities
from worker.ml.conditioning import Conditioning
from worker.ml.families.base import DiffusionModel
from worker.ml.regions import Box, Size, grid
from worker.ml.training.trainee import Rows
from worker.ml.word_positions import Word, subject_words

Sides = tuple[Word, Word]
"""Positions in the text of the placeholder that stands left, and of that on the right."""


def placed_words(model: DiffusionModel, rows: Rows, part: slice) -> dict[int, Sides]:
    """{place within ``part``: where its caption has the two placeholders} of the collages of photos among ``part``."""
    found: dict[int, Sides] = {}
    for place, row in enumerate(range(len(rows.latents))[part]):
        if row in rows.sides:
            left, right = rows.sides[row]
            taught = [TaughtToken(token=token, class_noun="", kind="subject") for token in (left, right)]
            words = subject_words(model, rows.prompts[rows.prompt_of_row[row]], taught)
            found[place] = words[left], words[right]
    return found


def unmix_losses(conditioning: Conditioning, size: Size, collages: Mapping[int, Sides]) -> Tensor:
    """``L_unmix`` [R] of the rows ``collages`` of the pass that filled ``conditioning.queries`` while latents were
    ``size``; differentiable in what the pass read. Raises `BaseUnusable` where layers have grids of other shapes.
    """
    queries, keys = conditioning.queries or {}, conditioning.kv.keys
    rows = torch.tensor(list(collages), device=keys[0].device)
    counted = torch.zeros(len(collages), keys[0].shape[1], 2, device=keys[0].device)
    for nth, words in enumerate(collages.values()):
        for side, word in enumerate(words):
            counted[nth, list(word), side] = 1.0
    losses = counted.new_zeros(len(collages))
    for layer, query in queries.items():
        attended = probabilities(query.index_select(0, rows), keys[layer].index_select(0, rows)).mean(1)
        astray = (attended @ counted.to(attended)) * beyond(size, query.shape[2]).to(attended)
        losses = losses + astray.square().sum(-1).mean(-1)
    return losses


def beyond(size: Size, positions: int) -> Tensor:
    """[positions, 2] in [0, 1]: the half of the right, where the left word may not act, and that of the left."""
    share = (size[1] // 2) / size[1]
    left = Box(0.0, 0.0, share, 1.0).coverage(grid(size, positions)).flatten()
    return torch.stack([1.0 - left, left], dim=-1)
