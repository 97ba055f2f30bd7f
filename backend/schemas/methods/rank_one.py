"""A rank-one edit of the value matrices in closed form (Meng et al. 2022, arXiv 2202.05262; methods.md 10.1)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backend.schemas.methods.card import MethodCard, Presets
from backend.schemas.methods.shared_parameters import Flip, UnmaskedWeight
from backend.schemas.strict import Strict


class RankOneParams(Strict):
    """How well the one target is averaged, and how far it moves (methods.md 10.1)."""

    steps: Annotated[
        int, Field(ge=1, le=2000, description="batches over which the target is averaged; nothing is trained")
    ] = 32
    batch_size: Annotated[int, Field(ge=1, le=64, description="photos a batch")] = 4
    strength: Annotated[
        float,
        Field(gt=0, le=100, description="how far the target moves, in lengths of what the word said before"),
    ] = 8.0
    flip: Flip = True
    unmasked_weight: UnmaskedWeight = 1.0
    preview_every: Annotated[
        int, Field(ge=0, le=20000, description="steps between previews; 0: first and last only")
    ] = 0


SMALL: Presets = {
    "quick": {"steps": 16},
    "balanced": {},
    "thorough": {"steps": 128},
}
STABLE_DIFFUSION: Presets = SMALL
"""Nothing is trained, and the strength is relative to what the word said before: nothing depends on the backbone."""


def side(params: RankOneParams) -> Literal["text", "weights"]:
    """Only value matrices change."""
    return "text"


CARD = MethodCard(
    name="rank-one",
    title="Rank-one edit",
    description=(
        "Writes one averaged target into the value matrices, without training, in a file of kilobytes; "
        "for a first look at a subject within seconds."
    ),
    source="Meng et al., Locating and Editing Factual Associations in GPT, NeurIPS 2022 (arXiv 2202.05262)",
    min_photos=3,
    max_photos=50,
    params_type=RankOneParams,
    presets={"small": SMALL, "stable-diffusion": STABLE_DIFFUSION},
    side=side,
    needs=frozenset({"text-kv"}),
    small_already=(
        "One vector for each value matrix is a change of rank 1 already; nothing of it could be cut."
    ),
)
