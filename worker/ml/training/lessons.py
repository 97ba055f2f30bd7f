"""What concepts are taught from, and how the rows of a step are dealt from it: the same for every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from worker.ml.conditioning import Prompt, TextEdit
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.training.augmentation import SMALL, ZOOMED
from worker.ml.training.captions import class_prompts, photo_caption
from worker.ml.training.dataset import PHOTOS_TOGETHER, PRIOR_TOGETHER, Bank, build_bank, deal
from worker.ml.training.prior import PriorImages, ensure_prior
from worker.ml.training.trainee import Rows


@dataclass(frozen=True)
class ConceptExamples:
    """A concept and its photos: local files, upright. ``token`` without brackets; ``class_noun`` may be
    empty.
    """

    token: str
    class_noun: str
    kind: Literal["subject", "style"]
    photos: list[Path]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one concept is taught from."""

    concept: ConceptExamples
    bank: Bank
    prior: PriorImages | None


Caption = Callable[[Lesson, str, int], str]
"""(lesson, prefix of the view, place of the row among all rows of this concept) -> caption of a photo."""


def check_distinct(concepts: Sequence[ConceptExamples]) -> None:
    """Raises `InputInvalid` where two concepts have one token."""
    if len({concept.token for concept in concepts}) < len(concepts):
        raise InputInvalid("Two of the concepts have the same token.")


def check_texts(
    model: DiffusionModel, edit: TextEdit, texts: Sequence[str], vectors: Callable[[str], int] = lambda _: 1
) -> None:
    """Every text that will be encoded fits: found out before the first step. ``vectors`` of each placeholder
    of ``edit``. Raises `PromptTooLong`, `InputInvalid`.
    """
    first = model.vocabulary_size
    virtual = {name: range(first, first + vectors(name)) for name in edit.tokens}
    for text in texts:
        model.token_ids(text, virtual)


def plain_captions(concepts: Sequence[ConceptExamples], *, augment: bool) -> list[str]:
    """Every caption that `plain_caption` can give to these concepts."""
    prefixes = ("", *ZOOMED, *SMALL) if augment else ("",)
    return [photo_caption(c.token, c.class_noun, c.kind, prefix) for c in concepts for prefix in prefixes]


def plain_caption(lesson: Lesson, prefix: str, place: int) -> str:
    """A `Caption`: "photo of a <token> dog", whatever the place."""
    return photo_caption(lesson.concept.token, lesson.concept.class_noun, lesson.concept.kind, prefix)


def prepare_lessons(
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    *,
    augment: bool,
    flip: bool,
    prior_images: int,
    prior_steps: int,
    seed: int,
    prior_dir: Path,
    run: Run,
) -> list[Lesson]:
    """Encodes photos and makes or finds prior images; ``prior_images`` 0: none. Raises `InputInvalid`."""
    lessons = []
    for concept in concepts:
        if not concept.photos:
            raise InputInvalid(f"The concept {concept.token} has no photos.")
        prompts = class_prompts(concept.class_noun, concept.kind, model.description.example_prompts)
        prior = (
            ensure_prior(model, prompts, count=prior_images, steps=prior_steps, cache_dir=prior_dir, run=run)
            if prompts and prior_images > 0
            else None
        )
        bank = build_bank(
            model,
            concept.photos,
            seed=seed,
            stream=f"photos/{concept.token}",
            augment=augment,
            flip=flip,
            run=run,
        )
        lessons.append(Lesson(concept, bank, prior))
    return lessons


def deal_lessons(
    lessons: Sequence[Lesson],
    *,
    batch_size: int,
    seed: int,
    step: int,
    edit: TextEdit,
    caption: Caption = plain_caption,
) -> Rows:
    """``batch_size`` photos, dealt to the concepts in turn, and as many prior images of the same concepts."""
    edits = ((edit, 1.0),)
    latents, masks, captions, prior = [], [], [], []
    first = step * batch_size
    for number, lesson in enumerate(lessons):
        concept, bank = lesson.concept, lesson.bank
        # of places first ... first + size - 1, those that are this concept's: number, number + len(lessons), ...
        turn = -(-(first - number) // len(lessons))
        turns = -(-(first + batch_size - number) // len(lessons)) - turn
        places = {"first": turn, "count": turns}
        dealt = deal(bank.prefixes, seed, f"deck/{concept.token}", **places, together=PHOTOS_TOGETHER)
        latents.append(bank.latents[dealt])
        masks.append(bank.masks[dealt])
        captions += [caption(lesson, bank.prefixes[entry], turn + nth) for nth, entry in enumerate(dealt)]
        prior += [False] * turns
        if lesson.prior is not None:
            kept = lesson.prior
            drawn = deal(kept.captions, seed, f"prior/{concept.token}", **places, together=PRIOR_TOGETHER)
            latents.append(kept.latents[drawn])
            masks.append(torch.ones_like(masks[-1]))
            captions += [kept.captions[entry] for entry in drawn]
            prior += [True] * turns
    distinct = list(dict.fromkeys(captions))
    return Rows(
        latents=torch.cat(latents),
        masks=torch.cat(masks),
        prompts=[Prompt(each, edits) for each in distinct],
        prompt_of_row=[distinct.index(each) for each in captions],
        prior=prior,
    )
