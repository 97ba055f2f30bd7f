"""A sketch of weights that says how they would merge, small enough for a row of the database and readable without torch
(`backend.services.merge_forecast`).

With ``X = C T^-1`` the constraint rows where every direction that texts use is equally long, and ``R_l`` what the
concept adds there at site l (methods.md 6.3), drift and crosstalk of any set of weights are functions of the X, of the
Gram matrices ``R_l^T R_l``, which are exact, and between two weights of ``R_l^T R'_l``, which a random projection of
R_l, the same for all weights, gives on average.
"""

from __future__ import annotations

import base64

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.schemas.merges.closed_form import ClosedFormParams
from worker.ml.caption_factor import HeldTexts, caption_factor
from worker.ml.concept_weights import ConceptWeights
from worker.ml.constraint_rows import Asked, read_sites, word_rows
from worker.ml.errors import InputInvalid, MethodUnsupported, PromptTooLong
from worker.ml.families.base import DiffusionModel
from worker.ml.least_change import whitened
from worker.ml.merges.base import MergeInput
from worker.ml.merges.inputs import as_text_edit
from worker.ml.merges.verification import caption_norms
from worker.ml.run import InProcessRun, Run
from worker.ml.streams import rng

DIRECTIONS = 48
"""Of the random projection: cross terms are right within ``1 / sqrt(48)`` of their largest possible size."""


@torch.no_grad()
def merge_sketch(
    model: DiffusionModel, weights: ConceptWeights, run: Run | None = None
) -> dict[str, object] | None:
    """JSON-able, about 60 kB for one concept on Stable Diffusion 1.x; None for weights that the closed form cannot
    take. Arrays are ``{"shape", "dtype", "data"}`` with base64 of little-endian numbers:

    - ``rows`` X [s, d] float32; ``words`` [w, d] float16: the mean state of each V*;
    - ``grams`` [sites, s, s] float32; ``projected`` [sites, 48, s] float16, each site divided by its ``sizes`` [sites];
    - ``norms`` [sites] float32: ``||W0 C_reg^T||_F``; ``weight``: ``||C||_F^2 / ||C_reg||_F^2``, a number.

    Raises `WeightsInvalid`, and what ``run.step`` raises where captions must be read first.
    """
    run = run or InProcessRun()
    params = ClosedFormParams()
    try:
        edit = as_text_edit(model, MergeInput("", weights))
        words = word_rows(model, [Asked(edit, 1.0, weights.manifest.tokens)], prefix=False)[0]
    except (MethodUnsupported, InputInvalid, PromptTooLong):
        return None
    factor = caption_factor(
        model, HeldTexts(params.captions, params.start_token, params.padding, params.ridge), run
    )
    sites = read_sites(model)
    states = torch.cat([word.states for word in words])
    changes = [torch.cat([word.changes[site.name] for word in words]).T for site in sites]
    norms = caption_norms(model, factor, sites)
    projected = torch.stack(
        [projection(site.name, len(each)) @ each for site, each in zip(sites, changes, strict=True)]
    )
    sizes = projected.flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    named = [str(token) for token in [taught.token for taught in weights.manifest.tokens]]
    return {
        "version": 1,
        "base_hash": model.description.hash,
        "tokens": named,
        "sites": [site.name for site in sites],
        "rows": packed(whitened(states, factor.held), "<f4"),
        "words": packed(torch.stack([_word_state(word.states, word.rows.vectors) for word in words]), "<f2"),
        "grams": packed(torch.stack([each.T @ each for each in changes]), "<f4"),
        "projected": packed(projected / sizes[:, None, None], "<f2"),
        "sizes": packed(sizes, "<f4"),
        "norms": packed(torch.tensor([norms[site.name][0] for site in sites]), "<f4"),
        "weight": float(states.square().sum() / factor.held.states.square().sum()),
    }


def projection(site: str, width: int) -> Tensor:
    """[48, o] of N(0, 1/48), drawn by the name of the site: ``E[(P a) . (P b)] = a . b``."""
    drawn = torch.randn(DIRECTIONS, width, generator=rng(0, f"merge-sketch/{site}", 0))
    scaled: Tensor = drawn.double() * DIRECTIONS**-0.5
    return scaled


def packed(tensor: Tensor, dtype: str) -> dict[str, object]:
    """An array as JSON."""
    array: NDArray[np.generic] = tensor.double().numpy().astype(dtype)
    return {"shape": list(array.shape), "dtype": dtype, "data": base64.b64encode(array.tobytes()).decode()}


def _word_state(states: Tensor, vectors: int) -> Tensor:
    """Mean of V* itself in the first caption, which begins with it; of the noun where there is no V*."""
    return states[: max(vectors, 1)].mean(dim=0)
