"""What concepts are taught from, and how the rows of a step are dealt from it: the same for every method."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from backend.schemas.methods.prior_source import PriorSource
from worker.ml.conditioning import Prompt, TextEdit
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import Untouched
from worker.ml.run import Run
from worker.ml.streams import rng
from worker.ml.training.augmentation import SMALL, ZOOMED, square_pixels
from worker.ml.training.captions import class_prompts, other_class_prompts, photo_caption
from worker.ml.training.collages import collage, collage_captions, collage_rows, words
from worker.ml.training.companions import Companions, build_companions, companion_rows
from worker.ml.training.dataset import PHOTOS_TOGETHER, PRIOR_TOGETHER, Bank, build_bank, deal
from worker.ml.training.prior import PriorImages, ensure_prior
from worker.ml.training.retrieval import retrieve_prior
from worker.ml.training.subject_masks import reads, subject_masks
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
class PriorPrediction:
    """A prior without images: on these captions the base model's own prediction shall stay what it was. It is asked
    at the noised photos of the step (Li and Hoiem 2016, arXiv 1606.09282, "Learning without Forgetting").
    """

    captions: tuple[str, ...]
    untouched: Untouched


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one concept is taught from."""

    concept: ConceptExamples
    bank: Bank
    prior: PriorImages | PriorPrediction | None
    companions: Companions | None = None


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


def plain_captions(
    concepts: Sequence[ConceptExamples], *, augment: bool, new_category: bool = False
) -> list[str]:
    """Every caption that `plain_caption` can give to these concepts; with ``new_category`` `noun_caption`."""
    prefixes = ("", *ZOOMED, *SMALL) if augment else ("",)
    return [
        photo_caption(None if new_category else c.token, c.class_noun, c.kind, prefix)
        for c in concepts
        for prefix in prefixes
    ]


def collage_texts(concepts: Sequence[ConceptExamples], collages: float) -> list[str]:
    """Captions that collages of any two of the concepts may get."""
    if collages == 0.0:
        return []
    placed = [concept for concept in concepts if concept.kind == "subject"]
    return [
        text
        for one in placed
        for other in placed
        if one is not other
        for text in collage_captions(words(one, False), words(other, False))
    ]


def plain_caption(lesson: Lesson, prefix: str, place: int) -> str:
    """A `Caption`: "photo of a <token> dog", whatever the place."""
    return photo_caption(lesson.concept.token, lesson.concept.class_noun, lesson.concept.kind, prefix)


def noun_caption(lesson: Lesson, prefix: str, place: int) -> str:
    """A `Caption` without a token: "photo of a moongate"."""
    return photo_caption(None, lesson.concept.class_noun, lesson.concept.kind, prefix)


def prepare_lessons(
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    *,
    augment: bool,
    flip: bool,
    prior: PriorSource = "generated",
    prior_images: int,
    prior_steps: int,
    seed: int,
    prior_dir: Path,
    run: Run,
    new_category: bool = False,
    companions: float = 0.0,
    unmasked_weight: float = 1.0,
) -> list[Lesson]:
    """Encodes photos and makes or finds prior images; ``prior_images`` 0: none. Raises `InputInvalid`. To be called
    before anything is installed: the prior is the base model's.

    ``new_category``: the class noun is what is taught, so the prior images are of others (`other_class_prompts`).
    ``companions`` above 0: photos are shown among other things too (`worker.ml.training.companions`).
    ``unmasked_weight`` below 1: what is around the subject counts less (`worker.ml.training.subject_masks`).
    """
    lessons = []
    for concept in concepts:
        if not concept.photos:
            raise InputInvalid(f"The concept {concept.token} has no photos.")
        noun, kind, base = concept.class_noun, concept.kind, model.description
        prompts = (
            other_class_prompts(noun, kind, base.class_nouns, base.example_prompts)
            if new_category
            else class_prompts(noun, kind, base.example_prompts)
        )
        kept: PriorImages | PriorPrediction | None = None
        if (prompts or (prior == "folder" and noun)) and prior_images > 0:
            if prior == "generated":
                kept = ensure_prior(
                    model, prompts, count=prior_images, steps=prior_steps, cache_dir=prior_dir, run=run
                )
            elif prior == "folder":
                kept = _retrieved(
                    model,
                    concept,
                    new_category=new_category,
                    count=prior_images,
                    cache_dir=prior_dir,
                    run=run,
                )
            elif prior == "prediction":
                kept = PriorPrediction(tuple(prompts), Untouched(model.denoiser, model.text_encoder))
        subjects = None
        if unmasked_weight < 1.0 and kind == "subject" and not new_category and reads(base, noun):
            subjects = subject_masks(
                model,
                [square_pixels(path, base.resolution) for path in concept.photos],
                noun,
                unmasked_weight=unmasked_weight,
                seed=seed,
                stream=f"subject/{concept.token}",
                run=run,
            )
        bank = build_bank(
            model,
            concept.photos,
            seed=seed,
            stream=f"photos/{concept.token}",
            augment=augment,
            flip=flip,
            run=run,
            masks=subjects,
        )
        company = None
        if companions > 0.0:
            company = build_companions(
                model,
                concept,
                preserve=prior == "generated" and kept is not None,
                prior_steps=prior_steps,
                flip=flip,
                seed=seed,
                cache_dir=prior_dir,
                run=run,
                subjects=subjects,
            )
        lessons.append(Lesson(concept, bank, kept, company))
    return lessons


def _retrieved(
    model: DiffusionModel,
    concept: ConceptExamples,
    *,
    new_category: bool,
    count: int,
    cache_dir: Path,
    run: Run,
) -> PriorImages:
    """What is nearest to "photo of a dog"; where the class is new, only what does not claim to show it already."""
    noun = concept.class_noun

    def may_say(caption: str) -> bool:
        return not (new_category and re.search(rf"(?<!\w){re.escape(noun)}", caption, re.IGNORECASE))

    return retrieve_prior(
        model,
        photo_caption(None, noun, concept.kind),
        count=count,
        photos=concept.photos,
        cache_dir=cache_dir,
        run=run,
        may_say=may_say,
    )


def deal_lessons(
    lessons: Sequence[Lesson],
    *,
    batch_size: int,
    seed: int,
    step: int,
    edit: TextEdit,
    caption: Caption = plain_caption,
    collages: float = 0.0,
    companions: float = 0.0,
) -> Rows:
    """``batch_size`` photos, dealt to the concepts in turn, and as many prior images of the same concepts. A share
    ``collages`` of the rows shows two concepts, where there are two subjects (`worker.ml.training.collages`); of the
    others a share ``companions`` shows one among other things.
    """
    edits = ((edit, 1.0),)
    latents, masks, captions, prior, tokens = [], [], [], [], list[str]()
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
        tokens += [concept.token] * turns
        if lesson.prior is not None:
            kept = lesson.prior
            drawn = deal(kept.captions, seed, f"prior/{concept.token}", **places, together=PRIOR_TOGETHER)
            latents.append(kept.latents[drawn] if isinstance(kept, PriorImages) else bank.latents[dealt])
            masks.append(torch.ones_like(masks[-1]))
            captions += [kept.captions[entry] for entry in drawn]
            prior += [True] * turns
            tokens += [concept.token] * turns
    shown, fields = torch.cat(latents), torch.cat(masks)
    sides = dict[int, tuple[str, str]]()
    for row, among in companion_rows(lessons, tokens, prior, share=companions, seed=seed, step=step).items():
        shown[row], fields[row], captions[row] = among
    for row, (left, right) in collage_rows(
        lessons, tokens, prior, share=collages, seed=seed, step=step
    ).items():
        shown[row], fields[row], captions[row] = collage(
            lessons, left, right, prior[row], rng(seed, f"halves/{row}", step)
        )
        tokens[row] = ""
        if not prior[row]:
            sides[row] = lessons[left].concept.token, lessons[right].concept.token
    distinct = list(dict.fromkeys(captions))
    return Rows(
        latents=shown,
        masks=fields,
        prompts=[Prompt(each, edits) for each in distinct],
        prompt_of_row=[distinct.index(each) for each in captions],
        prior=prior,
        untouched=next(
            (each.prior.untouched for each in lessons if isinstance(each.prior, PriorPrediction)), None
        ),
        tokens=tokens if len(lessons) > 1 else (),
        sides=sides,
    )
