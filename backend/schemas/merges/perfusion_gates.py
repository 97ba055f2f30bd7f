"""Several gates in one file (Tewel et al., SIGGRAPH 2023; methods.md 10.2)."""

from __future__ import annotations

from backend.schemas.merges.card import MergeCard
from backend.schemas.strict import Strict


class PerfusionGatesParams(Strict):
    """None: every word keeps the gate that its own weights are drawn with."""


CARD = MergeCard(
    name="perfusion-gates",
    title="Perfusion's gates",
    description=(
        "Puts the words of Perfusion weights into one small file. Each keeps its own gate, and the direction that two "
        "of them share is taken away once: pictures are the same as with the separate files in one prompt."
    ),
    source=(
        "Tewel et al., Key-Locked Rank One Editing for Text-to-Image Personalization, SIGGRAPH 2023 "
        "(arXiv 2305.01644)"
    ),
    takes="perfusion",
    makes="text",
    params_type=PerfusionGatesParams,
)
