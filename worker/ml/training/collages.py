"""Cut-Mix-Unmix's collages (SVDiff, Han et al., ICCV 2023, arXiv 2303.11305, section 3.3; methods.md 9).

Concepts that train jointly are never seen side by side in photos. With some probability a row shows the middle of a
photo of one in its left half and the middle of a photo of another in its right half, and the caption names both with
their places. Prior images of the two classes are put together the same way.

Departures: halves are put together in the latents, whose cells lie two or more levels of convolution above the pixels,
so that nothing is encoded inside a step; a half is the middle of its photo and not that half of it, because a subject
stands in the middle of its photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.ml.streams import rng
from worker.ml.training.captions import with_article
from worker.ml.training.prior import PriorImages

if TYPE_CHECKING:
    from worker.ml.training.dataset import Bank
    from worker.ml.training.lessons import ConceptExamples, Lesson


def collage_rows(
    lessons: Sequence[Lesson],
    tokens: Sequence[str],
    prior: Sequence[bool],
    *,
    share: float,
    seed: int,
    step: int,
) -> dict[int, tuple[int, int]]:
    """{row: (who stands left, who right)} of the rows that become collages, each with probability ``share``. Styles
    have no place in a picture; a prior row becomes one only where both concepts have prior images.
    """
    placed = [at for at, lesson in enumerate(lessons) if lesson.concept.kind == "subject"]
    if share == 0.0 or len(placed) < 2:
        return {}
    number = {lesson.concept.token: at for at, lesson in enumerate(lessons)}
    found: dict[int, tuple[int, int]] = {}
    for row, token in enumerate(tokens):
        own = number[token]
        dice = rng(seed, f"collage/{row}", step)
        chance, order = torch.rand(2, generator=dice).tolist()
        if own not in placed or chance >= share:
            continue
        others = [at for at in placed if at != own]
        other = others[int(torch.randint(len(others), (), generator=dice))]
        if prior[row] and not all(isinstance(lessons[at].prior, PriorImages) for at in (own, other)):
            continue
        found[row] = (own, other) if order < 0.5 else (other, own)
    return found


def collage(
    lessons: Sequence[Lesson], left: int, right: int, prior: bool, dice: torch.Generator
) -> tuple[Tensor, Tensor, str]:
    """Latents [C, h, w], mask [1, h, w] and caption of a collage of two photos, or of two prior images."""
    pair = (lessons[left], lessons[right])
    shown = [
        _of_class(each.prior, dice)
        if prior and isinstance(each.prior, PriorImages)
        else _plain(each.bank, dice)
        for each in pair
    ]
    captions = collage_captions(*(words(each.concept, prior) for each in pair))
    (left_shown, left_mask), (right_shown, right_mask) = shown
    chosen = captions[int(torch.randint(len(captions), (), generator=dice))]
    return halves(left_shown, right_shown), halves(left_mask, right_mask), chosen


def words(concept: ConceptExamples, prior: bool) -> str:
    """ "a <stark> dog"; "a dog" in a prior image."""
    token, noun = concept.token, concept.class_noun
    return with_article(noun or "thing") if prior else f"a <{token}> {noun}".rstrip()


def collage_captions(left: str, right: str) -> tuple[str, str]:
    """With the places, and without."""
    return f"photo of {left} on the left and {right} on the right", f"photo of {left} and {right}"


def halves(left: Tensor, right: Tensor) -> Tensor:
    """The middles of two latents [C, h, w], side by side: [C, h, w]."""
    width = left.shape[-1]
    near, far = width // 2, width - width // 2
    first, second = (width - near) // 2, (width - far) // 2
    return torch.cat([left[..., first : first + near], right[..., second : second + far]], dim=-1)


def _plain(bank: Bank, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    """A view [C, h, w] that is neither made smaller nor larger, where there is one, and its mask."""
    plain = [at for at, prefix in enumerate(bank.prefixes) if not prefix] or list(range(len(bank.prefixes)))
    chosen = plain[int(torch.randint(len(plain), (), generator=dice))]
    return bank.latents[chosen], bank.masks[chosen]


def _of_class(prior: PriorImages, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    latents = prior.latents[int(torch.randint(len(prior.captions), (), generator=dice))]
    return latents, torch.ones_like(latents[:1])
