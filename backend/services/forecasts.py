"""About how long a training takes and how large its file is, from trainings that ended well on this machine.

The parts are told apart, because they grow with different things: optimiser steps, previews, pictures that the base
model must draw first, the search for the scale. What is left (loading, photos, saving) is as long as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.models import ConceptWeights, Job
from backend.schemas.bases import BaseModelInfo
from backend.schemas.jobs import WorkSpent
from backend.schemas.methods import CARDS
from backend.schemas.prior_images import CHUNK, other_things, whole_chunks
from backend.schemas.trainings import Preset, TrainingForecast

LOOKED_AT = 50
"""The newest trainings on a base model."""
RECENT = 5
"""Of these, those that say how long a kind of work takes here."""
COUNTED = ("train", "preview", "prior", "calibration")
"""Kinds of work that differ from training to training (`JobMetrics.spent`); all others are as long as ever."""


class Subject(NamedTuple):
    """What a concept is to a forecast."""

    kind: str
    class_noun: str


SOMETHING_NEW = Subject("subject", "something new")
"""A concept that is not known yet, of a class that nobody taught."""


class PictureSet(NamedTuple):
    """What pictures of the base model's own depend on: they are kept for the next training that asks for the same.
    ``of``: the concept, and whether other classes, or it beside other things.
    """

    of: tuple[str, ...]
    solver_steps: int


@dataclass(frozen=True)
class Asked:
    """A training as far as its time depends on it. ``nouns``: the class nouns that the base model names."""

    params: Mapping[str, Any]
    subjects: Sequence[Subject] = (SOMETHING_NEW,)
    nouns: Sequence[str] = ()
    calibrated: bool = False

    @property
    def steps(self) -> int:
        return int(self.params.get("steps", 0))

    @property
    def previews(self) -> int:
        """Before the first step, every so many, and after the last."""
        every = int(self.params.get("preview_every", 0))
        return 2 + ((self.steps - 1) // every if every else 0) if self.steps else 0

    @property
    def retrieved(self) -> int:
        """Prior images that come from the administrator's folder."""
        return self._prior_images() * len(self.subjects) if self.params.get("prior") == "folder" else 0

    def pictures(self) -> dict[PictureSet, int]:
        """{set: how many of it are needed} of all that the base model draws: prior images, and pictures that photos
        are shown in beside other things.
        """
        found: dict[PictureSet, int] = {}
        solver_steps = int(self.params.get("prior_steps", 0))
        new_class = self.params.get("word") == "class-noun"
        for subject in self.subjects:
            if (count := self._drawn_of(subject)) > 0:
                about = ("others than" if new_class else "class", *subject)
                found[PictureSet(about, solver_steps)] = whole_chunks(count)
            others = other_things(*subject, self.nouns) if self.params.get("companions") else []
            if others and not new_class:
                found[PictureSet(("beside", *subject), solver_steps)] = CHUNK * len(others)
        return found

    def _drawn_of(self, subject: Subject) -> int:
        nameless = subject.kind == "subject" and not subject.class_noun
        return 0 if nameless or self.params.get("prior", "generated") != "generated" else self._prior_images()

    def _prior_images(self) -> int:
        return int(self.params.get("prior_images", 0)) if self.params.get("prior_weight", 1) else 0


@dataclass(frozen=True)
class Experience:
    """A training that ended well: what it was, where its seconds went, bytes of its file."""

    method: str
    asked: Asked
    spent: Mapping[str, WorkSpent]
    size_bytes: int

    def rate(self, work: str) -> float | None:
        """Seconds for one of its kind: an optimiser step, a preview, a solver step of a drawn picture, a concept's
        calibration. None where nothing of it was done.
        """
        spent = self.spent.get(work)
        if spent is None or not spent.count or (work == "prior" and self.asked.retrieved):
            return None
        count = {"calibration": len(self.asked.subjects), "prior": CHUNK * spent.count}.get(work, spent.count)
        return spent.seconds / count

    @property
    def fixed_s(self) -> float:
        """Seconds that every training of its kind takes; where no steps are asked for, those that it makes too."""
        counted = COUNTED if self.asked.steps else COUNTED[2:]
        return sum(spent.seconds for work, spent in self.spent.items() if work not in counted)


@dataclass(frozen=True)
class Known:
    """What this machine did lately on a base model: trainings that were timed, newest first, and how many pictures of
    each set were drawn for any.
    """

    timed: Sequence[Experience] = ()
    drawn: Mapping[PictureSet, int] = field(default_factory=dict)

    def of(self, method: str) -> list[Experience]:
        """Those with the method."""
        return [each for each in self.timed if each.method == method][:RECENT]


def recent(session: Session, base: BaseModelInfo | None) -> Known:
    """From the last trainings on the base; nothing where none is known."""
    if base is None:
        return Known()
    query = (
        select(Job.spec, Job.metrics, ConceptWeights.size_bytes)
        .join(ConceptWeights, ConceptWeights.job_id == Job.id)
        .where(Job.kind == "train", Job.state == "succeeded", Job.base == base.id)
        .order_by(Job.id.desc())
        .limit(LOOKED_AT)
    )
    timed: list[Experience] = []
    drawn: dict[PictureSet, int] = {}
    for spec, metrics, size_bytes in session.execute(query):
        asked = asked_by(spec, base)
        if spec["base_hash"] == base.hash:
            for each, count in asked.pictures().items():
                drawn[each] = max(count, drawn.get(each, 0))
        if spent := metrics.get("spent"):
            told = {work: WorkSpent.model_validate(took) for work, took in spent.items()}
            timed.append(Experience(spec["method"], asked, told, size_bytes))
    return Known(timed, drawn)


def asked_by(spec: Mapping[str, Any], base: BaseModelInfo) -> Asked:
    """What a pinned training asks for; ``spec`` is a `TrainSpec` as JSON."""
    return Asked(
        params=spec["params"],
        subjects=[Subject(each["kind"], each["class_noun"]) for each in spec["concepts"]],
        nouns=base.class_nouns,
        calibrated=spec.get("calibration") is not None,
    )


def judged(known: Known, method: str, asked: Asked) -> TrainingForecast:
    """What the training would do and take, by what this machine knows."""
    own, pictures = known.of(method), asked.pictures()
    missing = {each: max(0, count - known.drawn.get(each, 0)) for each, count in pictures.items()}
    to_draw = sum(missing.values())
    amounts = {
        "train": asked.steps,
        "preview": asked.previews,
        "prior": sum(count * each.solver_steps for each, count in missing.items()),
        "calibration": len(asked.subjects) if asked.calibrated else 0,
    }
    rates = {work: _rate(own if work in ("train", "preview") else known.timed, work) for work in COUNTED}
    unknown = [work for work in COUNTED if amounts[work] and rates[work] is None]
    parts = {work: amount * (rates[work] or 0.0) for work, amount in amounts.items()}
    if own:
        parts["rest"] = median(each.fixed_s for each in own)
    answered = bool(own) and not unknown
    return TrainingForecast(
        steps=asked.steps,
        prior_images=sum(pictures.values()) + asked.retrieved,
        images_to_draw=to_draw,
        expected_s=round(sum(parts.values()), 1) if answered else None,
        size_bytes=own[0].size_bytes if answered else None,
        basis=_basis(asked, parts, to_draw) if answered else _unknown(own, unknown),
    )


def _rate(experiences: Iterable[Experience], work: str) -> float | None:
    """The usual one of the newest that did such work."""
    found = [rate for each in experiences if (rate := each.rate(work)) is not None]
    return median(found[:RECENT]) if found else None


def _basis(asked: Asked, parts: Mapping[str, float], to_draw: int) -> str:
    named = {
        "train": f"{asked.steps} steps",
        "preview": "previews",
        "prior": f"{to_draw} pictures that the base model draws first",
        "calibration": "finding the scale",
        "rest": "the rest",
    }
    told = [f"{parts[work]:.0f} s for {words}" for work, words in named.items() if parts[work] >= 0.5]
    return f"From the last trainings on this machine: {', '.join(told) or 'less than a second'}."


def _unknown(own: Sequence[Experience], unknown: Sequence[str]) -> str:
    if own and unknown == ["calibration"]:
        return "No scale has been searched for on this machine yet, so there is no estimate."
    if own and "prior" in unknown:
        return "No pictures have been drawn for a training on this machine yet, so there is no estimate."
    return "Nothing has been timed with this method on this machine yet, so there is no estimate."


def usual_s(
    session: Session,
    base: BaseModelInfo | None,
    method: str = "custom-diffusion",
    preset: Preset = "quick",
    *,
    calibrate: bool = False,
) -> float | None:
    """How long a training with the preset takes here for a new class; None where nothing tells."""
    if base is None:
        return None
    card = CARDS[method]
    params = card.params_type(**card.presets_for(base)[preset]).model_dump()
    asked = Asked(params, nouns=base.class_nouns, calibrated=calibrate and base.judges is not None)
    return judged(recent(session, base), method, asked).expected_s
