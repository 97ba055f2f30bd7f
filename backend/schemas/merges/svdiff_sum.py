"""The sum of spectral shifts (Han et al., ICCV 2023, section 3.3)."""

from __future__ import annotations

from backend.schemas.merges.card import MergeCard
from backend.schemas.strict import Strict


class SVDiffSumParams(Strict):
    """None: the scales of the weights are the coefficients."""


CARD = MergeCard(
    name="svdiff-sum",
    title="Sum of spectral shifts",
    description=(
        "Adds the shifts of SVDiff weights, each times its scale, before they meet the singular values. The result is "
        "as small as one of them; concepts share the same singular vectors and disturb one another."
    ),
    source="Han et al., SVDiff: Compact Parameter Space for Diffusion Fine-Tuning, ICCV 2023 (arXiv 2303.11305)",
    takes="svdiff",
    makes="as-inputs",
    params_type=SVDiffSumParams,
)
