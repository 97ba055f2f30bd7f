"""Compressions: weights and how much to keep of them become a pinned spec and a job, or the reason why not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import Concept, ConceptWeights, Job, WeightsConcept
from backend.schemas.compressions import CompressionCreate, CompressSpec
from backend.schemas.problems import FieldError
from backend.schemas.trainings import PinnedConcept
from backend.schemas.weights import Compression, Criterion, WeightsManifest
from backend.schemas.weights_layout import least_bytes
from backend.services import generations, jobs, owned
from backend.storage import Storage

QUEUE = "cpu"
FIELDS: dict[str, Criterion] = {
    "rank": "rank", "nuclear": "nuclear", "energy": "energy", "max_bytes": "bytes", "token_only": "token-only",
}  # fmt: skip
"""Fields of a request and the criterion that each one means; exactly one is given."""
_HEADER_LIMIT_BYTES = 4 << 20


@dataclass(frozen=True)
class Held:
    """What a weights file holds: the largest rank of a change, and how small a file with its words alone is."""

    largest_rank: int
    least_bytes: int


def start(
    session: Session, storage: Storage, owner_id: str, body: CompressionCreate, max_queued_jobs: int = 200
) -> Job:
    """Pin everything the result depends on and enqueue it. NotFound for foreign weights, Invalid otherwise."""
    spec = pin(session, storage, owner_id, body)
    return jobs.enqueue(
        session,
        owner_id=owner_id,
        kind="compress",
        queue=QUEUE,
        request=body.model_dump(mode="json"),
        spec=spec,
        base=spec.base,
        base_hash=spec.base_hash,
        max_queued_jobs=max_queued_jobs,
    )


def pin(session: Session, storage: Storage, owner_id: str, body: CompressionCreate) -> CompressSpec:
    """The spec of a request."""
    wanted = _wanted(body)
    row = owned.get(session, ConceptWeights, owner_id, body.weights)
    _check(held(storage, row, wanted), wanted)
    links = session.execute(
        select(WeightsConcept.token, Concept)
        .join(Concept, Concept.id == WeightsConcept.concept_id)
        .where(WeightsConcept.weights_id == row.id, Concept.deleted_at.is_(None))
        .order_by(WeightsConcept.token)
    )
    return CompressSpec(
        weights=[generations.pinned(session, row, 1.0)],
        concepts=[
            PinnedConcept.model_validate(
                {
                    "id": each.id,
                    "token": token,
                    "class_noun": each.class_noun,
                    "kind": each.kind,
                    "photos": [],
                }
            )
            for token, each in links
        ],
        compression=wanted,
        base=row.base,
        base_hash=row.base_hash,
    )


def held(storage: Storage, row: ConceptWeights, wanted: Compression) -> Held | None:
    """What the stored file says of itself; None where nothing of it can be made smaller."""
    shapes = _shapes(storage, row)
    ranks = [_rank(name, shape) for name, (_, shape) in shapes.items()]
    if not any(ranks):
        return None
    manifest = WeightsManifest.model_validate(row.manifest).model_copy(
        update={"compression": wanted, "parents": [row.id]}
    )
    largest = max(row.size_bytes, int(wanted.value) if wanted.criterion == "bytes" else 0)
    return Held(max(ranks), least_bytes(manifest, shapes, largest))


def _wanted(body: CompressionCreate) -> Compression:
    given = {name: value for name in FIELDS if (value := getattr(body, name))}
    if len(given) != 1:
        said = "Say how much is kept by exactly one of rank, nuclear, energy, max_bytes and token_only."
        wrong = [FieldError(pointer=f"/{name}", detail=said) for name in given] or [
            FieldError(pointer="", detail=said)
        ]
        raise Invalid(said, code="one-criterion", errors=wrong)
    [(name, value)] = given.items()
    value = 0.0 if name == "token_only" else float(value)
    return Compression(criterion=FIELDS[name], value=value, precision=body.precision)


def _check(found: Held | None, wanted: Compression) -> None:
    if found is None:
        raise Invalid.at(
            "/weights",
            "Nothing of these weights can be made smaller: they hold words alone, or changes that are small already.",
            code="nothing-to-compress",
        )
    if wanted.criterion == "rank" and wanted.value > found.largest_rank:
        raise Invalid.at(
            "/rank",
            f"No change of these weights has so high a rank; give at most {found.largest_rank}.",
            code="rank-too-large",
            limit=found.largest_rank,
        )
    if wanted.criterion == "bytes" and wanted.value < found.least_bytes:
        raise Invalid.at(
            "/max_bytes",
            f"The words alone take {found.least_bytes} bytes, so the file cannot be smaller than that.",
            code="budget-too-small",
            minimum=found.least_bytes,
        )


def _shapes(storage: Storage, row: ConceptWeights) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of every tensor of our own file, by name; nothing where it cannot be read."""
    try:
        with storage.open(row.storage_key) as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length)) if length <= _HEADER_LIMIT_BYTES else {}
        header.pop("__metadata__", None)
        return {name: (entry["dtype"], list(entry["shape"])) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _rank(name: str, shape: list[int]) -> int:
    """The highest rank of the change that a tensor holds: the smaller side of a matrix, the rank of its factors."""
    if name.startswith("token."):
        return 0
    if name.endswith(".down"):
        return shape[0]
    if not name.endswith(".delta") or len(shape) < 2:
        return 0
    columns = 1
    for side in shape[1:]:
        columns *= side
    return min(shape[0], columns)
