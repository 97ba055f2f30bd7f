"""The table of merges: name -> card. Adding a merge is one file beside this and one row here (CONTRIBUTING)."""

from backend.schemas.merges import (
    closed_form,
    dare,
    gradient_fusion,
    linear,
    lora_svd,
    perfusion_gates,
    svdiff_sum,
    ties,
)
from backend.schemas.merges.card import MergeCard

MERGE_CARDS: dict[str, MergeCard] = {
    card.name: card
    for card in (
        closed_form.CARD,
        linear.CARD,
        ties.CARD,
        dare.CARD,
        svdiff_sum.CARD,
        lora_svd.CARD,
        perfusion_gates.CARD,
        gradient_fusion.CARD,
    )
}
