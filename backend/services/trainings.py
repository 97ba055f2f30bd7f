"""Trainings: a request becomes a pinned spec and a job, or every reason why it cannot."""

from __future__ import annotations

import random
from statistics import median
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import AppError, Invalid
from backend.models import Concept, ConceptWeights, Job
from backend.schemas.bases import BaseModelInfo
from backend.schemas.methods import CARDS
from backend.schemas.methods.card import MethodCard
from backend.schemas.problems import FieldError
from backend.schemas.trainings import (
    PinnedConcept,
    PinnedFile,
    Preset,
    TrainingCreate,
    TrainingForecast,
    TrainSpec,
)
from backend.services import bases, consent, jobs, owned, photos, prompts
from backend.services.prompts import Placeholder

QUEUE = "train_any"
PREVIEWS = 2
RECENT = 5
"""Trainings that say how long one takes here."""


def start(session: Session, owner_id: str, body: TrainingCreate, max_queued_jobs: int = 200) -> Job:
    """Pin everything the result depends on and enqueue it. NotFound for a foreign concept, Invalid otherwise."""
    spec = pin(session, owner_id, body)
    return jobs.enqueue(
        session,
        owner_id=owner_id,
        kind="train",
        queue=QUEUE,
        request=body.model_dump(mode="json", exclude={"dry_run"}),
        spec=spec,
        base=spec.base,
        base_hash=spec.base_hash,
        max_queued_jobs=max_queued_jobs,
    )


def pin(session: Session, owner_id: str, body: TrainingCreate) -> TrainSpec:
    """The spec of a request."""
    card = _card(body.method)
    if body.preset not in card.presets:
        raise Invalid.at("/preset", f"{card.title} has no such preset.", code="unknown-preset")
    base = bases.choose(session, body.base)
    if card.name not in base.methods:
        raise Invalid.at(
            "/method", "This base model cannot be taught with that method.", code="method-not-served"
        )
    rows = [owned.get(session, Concept, owner_id, concept_id) for concept_id in body.concepts]
    if len({row.id for row in rows}) < len(rows):
        raise Invalid.at("/concepts", "The same concept is named twice.")
    for index, row in enumerate(rows):
        consent.require(row, f"/concepts/{index}")
    params = _params(card, body)
    pinned = [_pinned(session, row, card, index) for index, row in enumerate(rows)]
    return TrainSpec(
        concepts=pinned,
        method=card.name,
        base=base.id,
        base_hash=base.hash,
        params=params,
        seed=body.seed if body.seed is not None else random.getrandbits(32),
        previews=_previews(session, base, rows, body),
    )


def forecast(session: Session, owner_id: str, body: TrainingCreate) -> TrainingForecast:
    """What the training would do and take, judged by earlier trainings of the same method on this base."""
    spec = pin(session, owner_id, body)
    steps, prior = int(spec.params.get("steps", 0)), int(spec.params.get("prior_images", 0))
    earlier = session.execute(
        select(Job.total_steps, Job.metrics, ConceptWeights.size_bytes)
        .join(ConceptWeights, ConceptWeights.job_id == Job.id)
        .where(Job.kind == "train", Job.state == "succeeded", Job.base == spec.base,
               ConceptWeights.method == spec.method)
        .order_by(Job.id.desc())
        .limit(1)
    ).first()  # fmt: skip
    run_s = earlier.metrics.get("run_s") if earlier else None
    if earlier is None or not run_s or not earlier.total_steps:
        return TrainingForecast(
            steps=steps,
            prior_images=prior,
            expected_s=None,
            size_bytes=None,
            basis="Nothing has been trained with this method on this machine yet, so there is no estimate.",
        )
    return TrainingForecast(
        steps=steps,
        prior_images=prior,
        expected_s=round(run_s * steps / earlier.total_steps, 1),
        size_bytes=earlier.size_bytes,
        basis="From the last training with this method on this machine, by the number of steps.",
    )


def usual_s(session: Session, method: str = "custom-diffusion", preset: Preset = "quick") -> float | None:
    """How long a training with the preset takes here, from the last ones that succeeded; None when there are none."""
    query = (
        select(Job.total_steps, Job.metrics)
        .where(Job.kind == "train", Job.state == "succeeded")
        .order_by(Job.id.desc())
        .limit(RECENT)
    )
    steps = CARDS[method].params_type(**CARDS[method].presets[preset]).model_dump()["steps"]
    took = [
        run_s * steps / total
        for total, told in session.execute(query)
        if total and (run_s := told.get("run_s"))
    ]
    return median(took) if took else None


def _card(name: str) -> MethodCard:
    card = CARDS.get(name)
    if card is None:
        raise Invalid.at("/method", "There is no such method.", code="unknown-method")
    return card


def _params(card: MethodCard, body: TrainingCreate) -> dict[str, Any]:
    try:
        checked = card.params_type.model_validate({**card.presets[body.preset], **body.params}, strict=True)
    except ValidationError as error:
        found = [
            FieldError(
                pointer="/params" + "".join(f"/{part}" for part in item["loc"])[:150], detail=_range(item)
            )
            for item in error.errors(include_input=False, include_url=False)
        ]
        raise Invalid(errors=found) from None
    return checked.model_dump(mode="json")


def _range(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "The method has no such parameter; remove it."
    limits = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    said = [f"{words} {item['ctx'][name]}" for name, words in limits.items() if name in item.get("ctx", {})]
    return f"Must be {said[0]}." if said else "Must have the type that the method's schema says."


def _pinned(session: Session, row: Concept, card: MethodCard, index: int) -> PinnedConcept:
    found = photos.of_concept(session, row.id)
    if not card.min_photos <= len(found) <= card.max_photos:
        raise Invalid.at(
            f"/concepts/{index}",
            f"{card.title} learns from {card.min_photos} to {card.max_photos} photos; this concept has {len(found)}.",
            code="photo-count",
            count=len(found),
            min=card.min_photos,
            max=card.max_photos,
        )
    return PinnedConcept.model_validate(
        {
            "id": row.id,
            "token": row.token,
            "class_noun": row.class_noun,
            "kind": row.kind,
            "photos": [
                PinnedFile(id=photo.id, storage_key=photo.storage_key, sha256=photo.sha256) for photo in found
            ],
        }
    )


def _previews(session: Session, base: BaseModelInfo, rows: list[Concept], body: TrainingCreate) -> list[str]:
    """Preview prompts in encoder text. Only the tokens of the concepts that are being taught exist yet."""
    taught = {row.token: Placeholder(row.token, row.class_noun, 1, "") for row in rows}
    asked = list(body.previews) or _examples(base, rows)
    vectors = {token: each.vectors for token, each in taught.items()}
    texts: list[str] = []
    for index, prompt in enumerate(asked):
        pointer = f"/previews/{index}"
        if not prompt:
            raise Invalid.at(pointer, "A preview needs a prompt.", code="empty-prompt")
        unknown = [name for name in prompts.tokens(prompt) if name not in taught]
        if unknown:
            raise Invalid.at(pointer, "A preview can only show what is being taught.", code="unknown-token")
        text = prompts.resolved(prompts.normal(prompt), taught)
        try:
            prompts.require_fit(session, base.id, text, vectors, pointer)
        except AppError:
            if body.previews:
                raise
            continue  # an example of the base that does not fit this concept's noun
        texts.append(text)
    return texts


def _examples(base: BaseModelInfo, rows: list[Concept]) -> list[str]:
    subject = " and ".join(f"@{row.token}" for row in rows)
    examples = base.example_prompts or ["a photo of {}"]
    return [example.replace("{}", subject) for example in examples[:PREVIEWS]]
