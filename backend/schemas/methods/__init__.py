"""The table of methods: name -> card. Adding a method is one file beside this and one row here (CONTRIBUTING)."""

from backend.schemas.methods import (
    custom_diffusion,
    dreambooth,
    loha,
    lokr,
    lora,
    perfusion,
    rank_one,
    svdiff,
    textual_inversion,
)
from backend.schemas.methods.card import MethodCard

CARDS: dict[str, MethodCard] = {
    card.name: card
    for card in (
        custom_diffusion.CARD,
        textual_inversion.CARD,
        lora.CARD,
        dreambooth.CARD,
        perfusion.CARD,
        rank_one.CARD,
        svdiff.CARD,
        loha.CARD,
        lokr.CARD,
    )
}
