"""Trainings: a request becomes a pinned spec and a job, or every reason why it cannot."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from backend.errors import AppError, Invalid
from backend.models import Concept, Job
from backend.schemas.bases import BaseModelInfo, JudgesDescription
from backend.schemas.methods import CARDS
from backend.schemas.methods.card import MethodCard
from backend.schemas.trainings import (
    PinnedConcept,
    TrainingCreate,
    TrainingForecast,
    TrainSpec,
)
from backend.services import bases, consent, forecasts, jobs, method_params, owned, photos, prompts
from backend.services.forecasts import Subject
from backend.services.prompts import Placeholder

QUEUE = "train_any"
PREVIEWS = 2


def start(
    session: Session, owner_id: str, body: TrainingCreate, max_queued_jobs: int = 200, calibrate: bool = False
) -> Job:
    """Pin everything the result depends on and enqueue it; ``calibrate`` where the request does not say. NotFound for
    a foreign concept, Invalid otherwise.
    """
    spec = pin(session, owner_id, body, calibrate)
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


def pin(session: Session, owner_id: str, body: TrainingCreate, calibrate: bool = False) -> TrainSpec:
    """The spec of a request."""
    card = _card(body.method)
    base = bases.choose(session, body.base)
    if body.preset not in card.presets_for(base):
        raise Invalid.at("/preset", f"{card.title} has no such preset.", code="unknown-preset")
    if reason := bases.cannot_be_taught(base, card):
        raise Invalid.at("/method", reason, code="method-not-served")
    rows = [owned.get(session, Concept, owner_id, concept_id) for concept_id in body.concepts]
    if len({row.id for row in rows}) < len(rows):
        raise Invalid.at("/concepts", "The same concept is named twice.")
    for index, row in enumerate(rows):
        consent.require(row, f"/concepts/{index}")
    params = method_params.checked(card, base, body.preset, body.params, len(rows))
    pinned = [_pinned(session, row, card, index) for index, row in enumerate(rows)]
    return TrainSpec(
        concepts=pinned,
        method=card.name,
        base=base.id,
        base_hash=base.hash,
        params=params,
        seed=body.seed if body.seed is not None else random.getrandbits(32),
        calibration=judges(
            base,
            [Subject(row.kind, row.class_noun) for row in rows],
            params,
            calibrate if body.calibrate is None else body.calibrate,
        ),
        previews=_previews(session, base, rows, body),
    )


def forecast(
    session: Session, owner_id: str, body: TrainingCreate, calibrate: bool = False
) -> TrainingForecast:
    """What the training would do and take, judged by earlier trainings on this base; otherwise as `pin`."""
    spec = pin(session, owner_id, body, calibrate)
    base = bases.choose(session, body.base)
    asked = forecasts.asked_by(spec.model_dump(mode="json"), base)
    return forecasts.judged(forecasts.recent(session, base), spec.method, asked)


def judges(
    base: BaseModelInfo, subjects: Sequence[Subject], params: Mapping[str, Any], wanted: bool
) -> JudgesDescription | None:
    """Who calibrates; nobody where a subject has no class to compare it with, or the class itself is what is taught."""
    nameless = any(each.kind == "subject" and not each.class_noun for each in subjects)
    return None if not wanted or nameless or params.get("word") == "class-noun" else base.judges


def _card(name: str) -> MethodCard:
    card = CARDS.get(name)
    if card is None:
        raise Invalid.at("/method", "There is no such method.", code="unknown-method")
    return card


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
            "photos": photos.pinned(found),
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
