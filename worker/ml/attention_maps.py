"""Cross-attention maps: where in the picture each token of the text is read.

``softmax(q k^T / sqrt(d_head))`` over the text, averaged over the heads of the layers on the grid in the middle: the
second coarsest of those that the base model's cross-attention has (Attend-and-Excite, Chefer et al. 2023, arXiv
2301.13826, section 3: 16 x 16 of Stable Diffusion's 64, 32, 16 and 8), the only one where there is but one.

A pass whose conditioning has ``queries`` leaves them there; attention itself is computed as ever, so what is
predicted is the same to the bit, and nothing is kept where nobody asks. Maps are differentiable in what the pass read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from worker.ml.conditioning import Conditioning, Queries
from worker.ml.regions import Size, grid

if TYPE_CHECKING:
    from worker.ml.families.base import DiffusionModel

SHARPNESS = 100.0
"""By which probabilities are multiplied before they compete once more without the start token, which draws most of
the attention (the authors' code).
"""
SMOOTHING = 0.5
"""Standard deviation of the Gaussian that smooths maps, in cells; 3 x 3 cells (the authors' code)."""


def watched(model: DiffusionModel, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """One pass of the denoiser over ``noisy`` [B, C, h, w]; the maps [B, h', w', T] that it attended with."""
    queries: Queries = {}
    watching = replace(conditioning, queries=queries)
    model.predict(noisy, t, watching)
    return maps(watching, (noisy.shape[-2], noisy.shape[-1]))


def maps(conditioning: Conditioning, size: Size) -> Tensor:
    """Maps [B, h', w', T] of the pass that filled ``conditioning.queries`` while latents were ``size``: each position's
    sum to 1 over the text.
    """
    queries = conditioning.queries or {}
    positions = middle([query.shape[2] for query in queries.values()])
    heads = [
        probabilities(query, conditioning.kv.keys[layer])
        for layer, query in queries.items()
        if query.shape[2] == positions
    ]
    mean = torch.cat(heads, dim=1).mean(1)
    return mean.view(len(mean), *grid(size, positions), -1)


def middle(positions: Sequence[int]) -> int:
    """Of the numbers of positions that layers have, that of the second coarsest grid."""
    coarsest_first = sorted(set(positions))
    return coarsest_first[min(1, len(coarsest_first) - 1)]


def probabilities(query: Tensor, key: Tensor) -> Tensor:
    """query [B, heads, n, d_head], key [B, T, inner] -> [B, heads, n, T] in [0, 1], in float32 at least."""
    wide = torch.promote_types(query.dtype, torch.float32)
    keys = key.view(*key.shape[:2], query.shape[1], -1).permute(0, 2, 3, 1)
    scores: Tensor = query.to(wide) @ keys.to(wide) / query.shape[-1] ** 0.5
    return scores.softmax(-1)


def word_maps(attended: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """Shares of each word in the attention of each position, [words, h, w] in [0, 1]: of maps [h, w, T], less the start
    token, sharpened so that they sum to 1 again, those of the word's positions in the text together; smoothed.
    """
    shares = (SHARPNESS * attended[..., 1:]).softmax(-1)
    return smoothed(torch.stack([shares[..., [at - 1 for at in word]].sum(-1) for word in words]))


def smoothed(planes: Tensor) -> Tensor:
    """[n, h, w] -> the same shape; edges are repeated outwards."""
    offsets = torch.tensor([-1.0, 0.0, 1.0], device=planes.device, dtype=planes.dtype)
    line = torch.exp(-(offsets**2) / (2 * SMOOTHING**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = functional.pad(planes[:, None], (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, kernel[None, None])[:, 0]
