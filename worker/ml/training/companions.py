"""Companions: a subject is taught beside other things, so that it keeps its place in a picture of several.

Photos show their subject alone and their captions name it alone, so what is learned holds for one subject in the
middle; in "a <stark> dog and a guitar" the word stands in another company of text states and the subject at half the
size, and it is lost. Cut-Mix (`worker.ml.training.collages`) needs a second concept that trains along. Here the base
model's own pictures of the class *and another thing* take its place: a photo, made smaller, is pasted over the half of
such a picture where the class should stand, and the caption names the placeholder where the picture's named the class.
Where photos are masked they are cut to their subject first: in a picture of two it has half the width and needs it.
As with the small views of the augmentation (methods.md 4) the pasted box counts less one latent cell a side, and the
seam around it does not. The companion's half counts as well, all in all as much as the subject: there the base's own
picture is to be met, so that the subject's words learn to leave another thing alone. The pictures as they are, with
their own captions, are prior images too, where the prior images are generated.

A caption names from left to right, as a reader expects; where the base model puts things elsewhere, the pasted photo
still stands where its caption says. This is our own, without a paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from backend.schemas.prior_images import CHUNK, other_things
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.streams import rng
from worker.ml.training.augmentation import Draw, open_square, render
from worker.ml.training.captions import ARTICLE, with_article
from worker.ml.training.dataset import ENCODED_AT_ONCE, PHOTOS_TOGETHER
from worker.ml.training.prior import PriorImages, ensure_prior
from worker.ml.training.subject_masks import SubjectMasks

if TYPE_CHECKING:
    from worker.ml.training.lessons import ConceptExamples, Lesson

VIEWS_PER_PICTURE = 2
SEAM = 2
"""Cells around the box less one cell a side that do not count: its outer ones, and those that touch them."""
SMALLEST, LARGEST = 0.44, 0.58
"""Side of the pasted photo, in shares of the picture's: two subjects of these sizes stand side by side."""
INWARDS, DOWNWARDS = 0.06, 0.16
"""How far a box moves at most, in shares of the picture's side: from its edge beyond the half that it leaves free, and
from the middle down.
"""


@dataclass(frozen=True)
class Company:
    """A caption with the placeholder and its plain form; whether the subject stands on the left."""

    caption: str
    plain: str
    left: bool


@dataclass(frozen=True, eq=False)
class Companions:
    """latents [M, C, h, w], masks [M, 1, h, w] and captions [M] of photos among companions; ``prior``: the base model's
    own pictures that they were pasted into, where they are preserved.
    """

    latents: Tensor
    masks: Tensor
    captions: tuple[str, ...]
    prior: PriorImages | None


def companies(concept: ConceptExamples, nouns: Sequence[str], examples: Sequence[str]) -> list[Company]:
    """Of `other_things`, right and left of the subject in turn, in the surroundings of the ``examples`` without an
    article of their own.
    """
    noun = concept.class_noun
    places = [each for each in examples if "{}" in each and not ARTICLE.search(each.split("{}")[0])]
    places = places or ["photo of {}"]
    found = []
    for at, other in enumerate(other_things(concept.kind, noun, nouns)):
        left, thing = at % 2 == 0, with_article(other)
        frame = places[at % len(places)].replace(
            "{}", f"{{}} and {thing}" if left else f"{thing} and {{}}", 1
        )
        own, plain = f"a <{concept.token}> {noun}", with_article(noun)
        found.append(Company(frame.replace("{}", own, 1), frame.replace("{}", plain, 1), left))
    return found


def companion_texts(
    model: DiffusionModel, concepts: Sequence[ConceptExamples], companions: float
) -> list[str]:
    """Captions that companions of the concepts may get, and those of the pictures that they are pasted into."""
    if companions == 0.0:
        return []
    base = model.description
    return [
        text
        for concept in concepts
        for company in companies(concept, base.class_nouns, base.example_prompts)
        for text in (company.caption, company.plain)
    ]


def build_companions(
    model: DiffusionModel,
    concept: ConceptExamples,
    *,
    preserve: bool,
    prior_steps: int,
    flip: bool,
    seed: int,
    cache_dir: Path,
    run: Run,
    subjects: SubjectMasks | None = None,
) -> Companions | None:
    """Draws or finds the base's pictures, which are kept like all prior images, and encodes photos among them; None
    where the concept has no `companies`. ``preserve``: the pictures are prior images too. ``subjects``: where photos
    show it.

    A pure function of photos, seed and parameters, whatever the number of steps. ``run.step("photos", ...)`` after each
    batch. Raises `InputInvalid`, `PromptTooLong` and what ``run.step`` raises.
    """
    known = companies(concept, model.description.class_nouns, model.description.example_prompts)
    if not known:
        return None
    pictures = ensure_prior(
        model,
        [company.plain for company in known],
        count=CHUNK * len(known),
        steps=prior_steps,
        cache_dir=cache_dir,
        run=run,
    )
    of_picture = {company.plain: company for company in known}
    size, stream = model.description.resolution, f"companions/{concept.token}"
    squares = [open_square(path, size) for path in concept.photos]
    if subjects:
        squares, subjects = subjects.close_up(squares)
    latents, masks, captions = list[Tensor](), list[Tensor](), list[str]()
    for first in range(0, len(pictures.captions), ENCODED_AT_ONCE):
        plain = pictures.captions[first : first + ENCODED_AT_ONCE]
        under = model.decode_latents(pictures.latents[first : first + ENCODED_AT_ONCE]).float().cpu()
        for turn in range(VIEWS_PER_PICTURE):
            views = list[Tensor]()
            for nth, picture in enumerate(under.clamp(-1.0, 1.0)):
                company, view = of_picture[plain[nth]], (first + nth) * VIEWS_PER_PICTURE + turn
                draw = place_draw(size, company.left, rng(seed, f"{stream}/view", view), flip=flip)
                photo = view % len(squares)
                pixels, box = pasted(picture, squares[photo], draw, model.cell)
                views.append(pixels)
                own = subjects.weighed(box, photo, draw) if subjects else box
                masks.append(own + beside(box, own, company.left))
                captions.append(company.caption)
            dice = rng(seed, f"{stream}/posterior", first * VIEWS_PER_PICTURE + turn)
            latents.append(model.encode_images(torch.stack(views), dice).float())
            run.step("photos", len(captions), len(pictures.captions) * VIEWS_PER_PICTURE)
    return Companions(
        torch.cat(latents),
        torch.stack(masks).to(model.device),
        tuple(captions),
        pictures if preserve else None,
    )


def place_draw(size_px: int, left: bool, dice: torch.Generator, *, flip: bool) -> Draw:
    """Where a photo is pasted: its middle in its own half and, as things stand on grounds, a little below the
    picture's. It may reach over the middle. Pure in ``dice``.
    """
    chance = torch.rand(4, generator=dice).tolist()
    side = round((SMALLEST + (LARGEST - SMALLEST) * chance[0]) * size_px)
    room = max(0, size_px // 2 - side) + round(INWARDS * size_px)
    start = round(chance[1] * room)
    top = round((0.5 + DOWNWARDS * chance[2]) * size_px) - side // 2
    return Draw(
        side,
        start if left else size_px - side - start,
        min(max(top, 0), size_px - side),
        "",
        flip and chance[3] < 0.5,
    )


def pasted(picture: Tensor, photo: Image.Image, draw: Draw, cell: int) -> tuple[Tensor, Tensor]:
    """``picture`` [3, S, S] with the square ``photo`` in the box of ``draw``; and the mask [1, S / cell, S / cell] of
    what counts, the box less one cell a side.
    """
    view = render(photo, draw, picture.shape[-1], cell)
    box = (
        ...,
        slice(draw.top_px, draw.top_px + draw.size_px),
        slice(draw.left_px, draw.left_px + draw.size_px),
    )
    pixels = picture.clone()
    pixels[box] = view.pixels[box]
    return pixels, view.mask


def beside(box: Tensor, own: Tensor, left: bool) -> Tensor:
    """What counts of the companion: the half [1, h, w] that is not the subject's, but for the cells at the ``box`` and
    those next to them, together as much as ``own``.
    """
    half, middle = torch.ones_like(box), box.shape[-1] // 2
    half[..., slice(0, middle) if left else slice(middle, None)] = 0.0
    free = half * (1.0 - max_pool2d(box, 2 * SEAM + 1, 1, SEAM))
    return free * (own.sum() / free.sum().clamp(min=1.0))


def companion_rows(
    lessons: Sequence[Lesson],
    tokens: Sequence[str],
    prior: Sequence[bool],
    *,
    share: float,
    seed: int,
    step: int,
) -> dict[int, tuple[Tensor, Tensor, str]]:
    """{row: (latents [C, h, w], mask [1, h, w], caption)} of the rows that become companions, each with probability
    ``share``: photos by `PHOTOS_TOGETHER`, the prior rows of a concept all or none, because text encoders cost by the
    caption.
    """
    found: dict[int, tuple[Tensor, Tensor, str]] = {}
    for lesson in lessons:
        known, token = lesson.companions, lesson.concept.token
        if known is None:
            continue
        own = [row for row, each in enumerate(tokens) if each == token and not prior[row]]
        for first in range(0, len(own), PHOTOS_TOGETHER):
            rows = own[first : first + PHOTOS_TOGETHER]
            for row, entry in _dealt(
                rows, known.captions, share, rng(seed, f"companions/{token}/{first}", step)
            ):
                found[row] = known.latents[entry], known.masks[entry], known.captions[entry]
        if known.prior is None:
            continue
        whole, kept = torch.ones_like(known.masks[0]), known.prior
        own = [row for row, each in enumerate(tokens) if each == token and prior[row]]
        for row, entry in _dealt(own, kept.captions, share, rng(seed, f"companions/{token}/prior", step)):
            found[row] = kept.latents[entry], whole, kept.captions[entry]
    return found


def _dealt(
    rows: Sequence[int], captions: Sequence[str], share: float, dice: torch.Generator
) -> list[tuple[int, int]]:
    """(row, entry) with entries of one caption for all of ``rows``, with probability ``share``; else none."""
    if float(torch.rand((), generator=dice)) >= share:
        return []
    distinct = list(dict.fromkeys(captions))
    chosen = distinct[_below(len(distinct), dice)]
    held = [at for at, caption in enumerate(captions) if caption == chosen]
    return [(row, held[_below(len(held), dice)]) for row in rows]


def _below(count: int, dice: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=dice))
