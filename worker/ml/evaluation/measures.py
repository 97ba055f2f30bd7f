"""The evaluation of any concept of any method: pictures are drawn, judges look at them, three measures come out.

Four sets of pictures, each prompt with each seed: the base model's for the class ("a photo of a dog on the beach"),
the same from other seeds, the concept's ("a photo of <stark> dog on the beach"), and the class again while the
concept is in place. From what the judges see of them (`Sight`) and of the concept's photos, `grade` computes subject
similarity, prompt similarity and drift on the scales of `protocol` (methods.md 14.1). The judge of words never reads
the placeholder: prompts are given to it with the class alone.

For a style, subject similarity compares whole pictures by the image-text judge's image features (CLIP-I), since the
judge of individuals was not made to see a manner of drawing; and the class is the prompt without "in the style of".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.schemas.evaluations import Measure
from worker.ml.conditioning import Prompt, TextEdit
from worker.ml.errors import InputInvalid
from worker.ml.evaluation import protocol
from worker.ml.evaluation.panel import Panel
from worker.ml.evaluation.protocol import Features, Scale
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import Installation
from worker.ml.run import Run
from worker.ml.sampling.latents import Picture, sample_latents
from worker.ml.training.augmentation import open_square
from worker.ml.training.captions import STYLE_NOUN, filled

OTHER_SEEDS, DRIFT_SEEDS = 2000, 1000
"""Added to the image seeds: for the base's second set, and for class pictures with the concept in place."""
NOUNS = ("dog", "teapot", "car", "house")
"""For an unrelated prompt, where the base model names no nouns."""
IN_THE_STYLE = re.compile(r",?\s*\bin the style of \{\}", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """What is drawn: each prompt, with ``{}`` where the concept stands, with each seed. At least two of both."""

    prompts: tuple[str, ...]
    image_seeds: tuple[int, ...]
    num_inference_steps: int


@dataclass(frozen=True)
class Target:
    """What a concept is called in prompts. ``class_noun`` may be empty for a style alone."""

    token: str
    class_noun: str
    kind: Literal["subject", "style"] = "subject"

    def own(self, prompt: str) -> str:
        """The prompt with the concept: "a photo of <stark> dog on the beach"."""
        noun = self.class_noun or (STYLE_NOUN if self.kind == "style" else "")
        return prompt.replace("{}", f"<{self.token}> {noun}".rstrip())

    def plain(self, prompt: str, noun: str = "") -> str:
        """The prompt with the class (or another ``noun``) alone; of a style's prompt what is shown."""
        if self.kind == "style":
            return IN_THE_STYLE.sub("", prompt).replace("{}", STYLE_NOUN).strip()
        return filled(prompt, noun or self.class_noun)


@dataclass(frozen=True)
class Sight:
    """What the judges see in one set of pictures, a row a picture, prompts outermost: float32, unit rows."""

    image_text: Features
    subject: Features


@dataclass(frozen=True)
class Sights:
    """The four sets of pictures, as the judges see them."""

    base: Sight
    base_again: Sight
    own: Sight
    others: Sight


@dataclass(frozen=True)
class Grades:
    """Three measures on their scales."""

    subject_similarity: Measure
    prompt_similarity: Measure
    drift: Measure


Keep = Callable[[str, Callable[[], Sight]], Sight]
"""``keep(name, make)``: what was kept under the name, else what ``make`` makes. A caller may make it durable."""
Show = Callable[[str, int, Tensor], None]


def draw(
    model: DiffusionModel,
    plan: Plan,
    texts: Sequence[str],
    run: Run,
    *,
    edit: TextEdit | None = None,
    installation: Installation = (),
    scale: float = 1.0,
    first_seed: int = 0,
) -> Tensor:
    """Each of ``texts`` (encoder texts) with each seed of the plan, texts outermost: [n, 3, S, S] in [-1, 1], CPU.
    ``scale`` of the edit; an installation brings its own.
    """
    description = model.description
    edits = ((edit, scale),) if edit is not None else ()
    pictures = [
        Picture(
            prompt=Prompt(text, edits),
            negative=Prompt("", edits, negative=True),
            seed=seed + first_seed,
            num_inference_steps=plan.num_inference_steps,
            guidance_scale=description.defaults.guidance_scale,
            scheduler=description.defaults.scheduler,
            width=description.resolution,
            height=description.resolution,
            installation=installation,
        )
        for text in texts
        for seed in plan.image_seeds
    ]
    drawn = dict(sample_latents(model, pictures, run, "images"))
    with torch.no_grad():
        return torch.cat(
            [model.decode_latents(drawn[place][None]).clamp(-1, 1).cpu() for place in range(len(pictures))]
        )


def photo_pixels(photos: Sequence[Path], side_px: int) -> Tensor:
    """The centre squares of photos at ``side_px``: [n, 3, S, S] in [-1, 1]. Raises `InputInvalid`."""
    squares = [open_square(path, side_px).resize((side_px, side_px), Image.Resampling.BOX) for path in photos]
    stacked = np.stack([np.asarray(square, np.float32) for square in squares])
    return torch.from_numpy(stacked.transpose(0, 3, 1, 2)) / 127.5 - 1


def sight(panel: Panel, pixels: Tensor) -> Sight:
    """What the judges see in ``pixels`` [n, 3, H, W] in [-1, 1]."""
    return Sight(panel.image_text_features(pixels).numpy(), panel.subject_features(pixels).numpy())


@dataclass(frozen=True)
class _Acting:
    """What a concept changes while its pictures are drawn; ``scale`` is the edit's."""

    edit: TextEdit
    installation: Installation
    scale: float


@dataclass(frozen=True)
class Sitting:
    """An evaluation under way. ``keep`` gets every prompt's part under a name of its own; ``show`` every part's pixels
    as they are drawn, with the set ("base", "again", "own", "others") and the place of the prompt.
    """

    model: DiffusionModel
    panel: Panel
    plan: Plan
    run: Run
    keep: Keep = lambda _name, make: make()
    show: Show = lambda _which, _place, _pixels: None

    def base(self, target: Target) -> tuple[Sight, Sight]:
        """The base model's pictures of the class, and again from other seeds. Kept under names that depend on the
        class alone, so that several weights share them. Raises what `sample_latents` raises.
        """
        shared = f"{target.kind}-{target.class_noun}"
        return (
            self.plain(target),
            self._set(f"again-{shared}", "again", target.plain, OTHER_SEEDS),
        )

    def plain(self, target: Target) -> Sight:
        """The base model's pictures of the class."""
        return self._set(f"base-{target.kind}-{target.class_noun}", "base", target.plain, 0)

    def own(
        self,
        target: Target,
        edit: TextEdit,
        installation: Installation = (),
        name: str = "",
        scale: float = 1.0,
    ) -> Sight:
        """Pictures of the concept, kept under ``name``."""
        acting = _Acting(edit, installation, scale)
        return self._set(f"own-{name}", "own", target.own, 0, acting)

    def taught(
        self,
        target: Target,
        edit: TextEdit,
        installation: Installation = (),
        name: str = "",
        scale: float = 1.0,
    ) -> tuple[Sight, Sight]:
        """Pictures of the concept, and of the class with the concept in place, kept under ``name``."""
        acting = _Acting(edit, installation, scale)
        return (
            self.own(target, edit, installation, name, scale),
            self._set(f"others-{name}", "others", target.plain, DRIFT_SEEDS, acting),
        )

    def _set(
        self,
        name: str,
        which: str,
        wording: Callable[[str], str],
        first_seed: int,
        acting: _Acting | None = None,
    ) -> Sight:
        def part(place: int) -> Sight:
            pixels = draw(
                self.model,
                self.plan,
                [wording(self.plan.prompts[place])],
                self.run,
                edit=acting.edit if acting else None,
                installation=acting.installation if acting else (),
                scale=acting.scale if acting else 1.0,
                first_seed=first_seed,
            )
            self.show(which, place, pixels)
            return sight(self.panel, pixels)

        parts = [
            self.keep(f"{name}-{place}", partial(part, place)) for place in range(len(self.plan.prompts))
        ]
        return Sight(
            np.concatenate([one.image_text for one in parts]), np.concatenate([one.subject for one in parts])
        )


SETS_OF_BASE, SETS_OF_CONCEPT = 2, 2
"""How many sets of pictures `Sitting.base` and `Sitting.taught` draw."""


def grade(
    sitting: Sitting, target: Target, sights: Sights, photos: Sight, true: Sight | None = None
) -> Grades:
    """The measures of what was seen. ``photos`` are those that taught the concept; ``true`` are other pictures of it.

    Without ``true`` the anchor 1 of subject similarity is the photos among themselves, each against the others.
    Raises `InputInvalid` where there is a single photo or a plan too small.
    """
    plan = sitting.plan
    seeds = len(plan.image_seeds)
    if min(seeds, len(plan.prompts)) < 2 or len(photos.subject) < 2:
        raise InputInvalid("An evaluation needs two photos, two prompts and two pictures of each.")
    subject = subject_measure(sitting, target, sights.base, sights.own, photos=photos, true=true)
    prompt = prompt_measure(sitting, target, sights.base, sights.own)
    base = sights.base.image_text
    drift = _measure(
        protocol.kid(sights.others.image_text, base),
        [protocol.kid(part, base) for part in _by_seed(sights.others.image_text, seeds)],
        protocol.kid(sights.base_again.image_text, base),
        protocol.kid(photos.image_text, base),
    )
    return Grades(subject, prompt, drift)


def subject_measure(
    sitting: Sitting, target: Target, base: Sight, own: Sight, *, photos: Sight, true: Sight | None = None
) -> Measure:
    """Of two photos or more; for ``true`` see `grade`."""
    likeness = "image_text" if target.kind == "style" else "subject"

    def rows(seen: Sight) -> Features:
        found: Features = getattr(seen, likeness)
        return found

    return _measure(
        protocol.mean_pairwise_cosine(rows(own), rows(photos)),
        [
            protocol.mean_pairwise_cosine(part, rows(photos))
            for part in _by_seed(rows(own), len(sitting.plan.image_seeds))
        ],
        protocol.mean_pairwise_cosine(rows(base), rows(photos)),
        protocol.mean_pairwise_cosine(rows(true), rows(photos))
        if true is not None
        else _among_themselves(rows(photos)),
    )


def prompt_measure(sitting: Sitting, target: Target, base: Sight, own: Sight) -> Measure:
    """Whether the concept's pictures show what the prompts say, as far as the base model's do."""
    panel, plan = sitting.panel, sitting.plan
    seeds = len(plan.image_seeds)
    texts = repeated(panel.text_features([target.plain(prompt) for prompt in plan.prompts]), seeds)
    away = repeated(panel.text_features(unrelated(sitting.model, plan, target)), seeds)
    return _measure(
        protocol.mean_matched_cosine(own.image_text, texts),
        [
            protocol.mean_matched_cosine(own.image_text[place::seeds], texts[place::seeds])
            for place in range(seeds)
        ],
        protocol.mean_matched_cosine(base.image_text, away),
        protocol.mean_matched_cosine(base.image_text, texts),
    )


def _measure(raw: float, per_seed: Sequence[float], zero: float, one: float) -> Measure:
    try:
        scale = Scale(zero, one)
        value, rows = scale.of(raw), [scale.of(each) for each in per_seed]
    except ValueError:
        return Measure(
            value=None, deviation=None, half_width_95=None, per_seed=[], raw=raw, zero=zero, one=one
        )
    found = protocol.spread(rows)
    return Measure(
        value=value,
        deviation=found.deviation,
        half_width_95=found.half_width_95,
        per_seed=rows,
        raw=raw,
        zero=zero,
        one=one,
    )


def _among_themselves(rows: Features) -> float:
    """Mean cosine over all pairs of different rows."""
    products = rows.astype(np.float64) @ rows.astype(np.float64).T
    count = len(rows)
    return float((products.sum() - np.trace(products)) / (count * (count - 1)))


def _by_seed(rows: Features, seeds: int) -> Iterator[Features]:
    return (rows[place::seeds] for place in range(seeds))


def repeated(features: Tensor, times: int) -> Features:
    """Each row ``times`` times, one after another: a row a picture, where there was a row a prompt."""
    repeated: Features = features.repeat_interleave(times, 0).numpy()
    return repeated


def unrelated(model: DiffusionModel, plan: Plan, target: Target) -> list[str]:
    """For each prompt the one half the list away, with another noun."""
    half = len(plan.prompts) // 2
    away = plan.prompts[half:] + plan.prompts[:half]
    nouns = list(model.description.class_nouns) or list(NOUNS)
    known = nouns.index(target.class_noun) if target.class_noun in nouns else 0
    return [target.plain(prompt, nouns[(known + len(nouns) // 2) % len(nouns)]) for prompt in away]
