"""Merges: weights and how to merge them become a pinned spec and a job, or a forecast of it, or the reason why not."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import Conflict, Invalid
from backend.models import ConceptWeights, Job
from backend.schemas.merges import MERGE_CARDS
from backend.schemas.merges.card import MergeCard
from backend.schemas.merges.requests import MergeCreate, MergeForecast, MergeSpec
from backend.schemas.problems import FieldError
from backend.services import generations, jobs, merge_forecast, merge_inputs, method_params, weights
from backend.services.merge_inputs import Input
from backend.storage import Storage

QUEUE = "cpu"
QUEUE_OF_DRAWING = "train_any"
"""For merges that draw pictures."""


def start(
    session: Session, storage: Storage, owner_id: str, body: MergeCreate, max_queued_jobs: int = 200
) -> Job:
    """Pin everything the result depends on and enqueue it. NotFound for foreign weights, Invalid otherwise."""
    spec = pin(session, storage, owner_id, body)
    return jobs.enqueue(
        session,
        owner_id=owner_id,
        kind="merge",
        queue=QUEUE_OF_DRAWING if MERGE_CARDS[spec.method].draws else QUEUE,
        request=body.model_dump(mode="json"),
        spec=spec,
        base=spec.base,
        base_hash=spec.base_hash,
        max_queued_jobs=max_queued_jobs,
    )


def pin(session: Session, storage: Storage, owner_id: str, body: MergeCreate) -> MergeSpec:
    """The spec of a request."""
    inputs = merge_inputs.gather(session, owner_id, body.weights)
    card = _card(body.method)
    merge_inputs.require_taken(session, storage, card, inputs)
    params = method_params.of_type(card.params_type, body.params)
    concepts, renames = merge_inputs.result_tokens(inputs)
    return MergeSpec(
        weights=[generations.pinned(session, each.row, each.scale) for each in inputs],
        concepts=concepts,
        renames=renames,
        method=card.name,
        params=params,
        base=inputs[0].row.base,
        base_hash=inputs[0].row.base_hash,
    )


def forecast(session: Session, storage: Storage, owner_id: str, body: MergeCreate) -> MergeForecast:
    """What the chosen merge would be like, from the sketches of the weights. What `pin` raises, and Conflict
    ``no-sketch`` where weights have none.
    """
    spec = pin(session, storage, owner_id, body)
    inputs = merge_inputs.gather(session, owner_id, body.weights)
    ids = [each.row.id for each in inputs]
    query = select(ConceptWeights.id, ConceptWeights.sketch).where(ConceptWeights.id.in_(ids))
    known: dict[str, dict[str, Any] | None] = {row.id: row.sketch for row in session.execute(query)}
    lacking = [
        FieldError(pointer=f"/weights/{place}", detail=_lacking(each, known[each.row.id]))
        for place, each in enumerate(inputs)
        if not known[each.row.id]
    ]
    if lacking:
        raise Conflict(lacking[0].detail, code="no-sketch", errors=lacking)
    sketches = [known[weights_id] or {} for weights_id in ids]
    return merge_forecast.forecast(spec.method, spec.params, sketches, ids, [each.scale for each in inputs])


def jointly_trained(session: Session, owner_id: str, merged: ConceptWeights) -> str | None:
    """The newest weights that were trained together on exactly the concepts of a merge, and on the same version of its
    base; None without any.
    """
    wanted = set(weights.to_schema(session, merged).concepts)
    rows, _ = weights.page(session, owner_id, limit=200, concept=next(iter(wanted), ""))
    for shown in weights.to_schemas(session, rows):
        made = shown.manifest
        same_base = (made.base, made.base_hash) == (merged.base, merged.base_hash)
        if set(shown.concepts) == wanted and made.merge is None and same_base:
            return str(shown.id)
    return None


def _card(name: str) -> MergeCard:
    card = MERGE_CARDS.get(name)
    if card is None:
        raise Invalid.at("/method", "There is no such merge.", code="unknown-method")
    return card


def _lacking(each: Input, sketch: object) -> str:
    """Why there is no forecast with these weights."""
    if sketch is not None:
        return f"{each.names} has nothing that a forecast could compare."
    if each.row.job_id is None:
        return f"{each.names} was imported, and imported weights have nothing to forecast from."
    return f"{each.names} was made by an earlier version, without what a forecast compares. Train it again for one."
