"""Compressions: weights and how much to keep of them become a pinned spec and a job, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import ConceptWeights, Job
from backend.schemas.compressions import CompressionCreate, CompressSpec
from backend.schemas.methods import CARDS
from backend.schemas.problems import FieldError
from backend.schemas.weights import Compression, Criterion, WeightsManifest
from backend.schemas.weights_layout import least_bytes
from backend.services import comparisons, generations, jobs, owned
from backend.services.tensor_shapes import typed_shapes
from backend.storage import Storage

QUEUE = "cpu"
QUEUE_OF_DRAWING = "train_any"
"""Where pictures are compared afterwards."""
FIELDS: dict[str, Criterion] = {
    "rank": "rank", "nuclear": "nuclear", "energy": "energy", "max_bytes": "bytes", "token_only": "token-only",
}  # fmt: skip
"""Fields of a request and the criterion that each one means; exactly one is given."""


@dataclass(frozen=True)
class Held:
    """What a weights file holds: the largest rank of a change, and how small a file with its words alone is."""

    largest_rank: int
    least_bytes: int


def start(
    session: Session,
    storage: Storage,
    owner_id: str,
    body: CompressionCreate,
    max_queued_jobs: int = 200,
    *,
    compare: bool = False,
) -> Job:
    """Pin everything the result depends on and enqueue it; ``compare`` where the request does not say. NotFound for
    foreign weights, Invalid otherwise.
    """
    spec = pin(session, storage, owner_id, body, compare=compare)
    return jobs.enqueue(
        session,
        owner_id=owner_id,
        kind="compress",
        queue=QUEUE_OF_DRAWING if spec.judges else QUEUE,
        request=body.model_dump(mode="json"),
        spec=spec,
        base=spec.base,
        base_hash=spec.base_hash,
        max_queued_jobs=max_queued_jobs,
    )


def pin(
    session: Session, storage: Storage, owner_id: str, body: CompressionCreate, *, compare: bool = False
) -> CompressSpec:
    """The spec of a request."""
    wanted = _wanted(body)
    row = owned.get(session, ConceptWeights, owner_id, body.weights)
    _check(row, held(storage, row, wanted), wanted)
    taught = comparisons.concepts(session, row)
    judges = None
    if compare if body.compare is None else body.compare:
        judges = comparisons.judges(session, row, taught)
    return CompressSpec(
        weights=[generations.pinned(session, row, 1.0)],
        concepts=taught if judges else [each.model_copy(update={"photos": []}) for each in taught],
        compression=wanted,
        base=row.base,
        base_hash=row.base_hash,
        judges=judges,
        known=comparisons.known(session, row, judges, taught) if judges else None,
    )


def held(storage: Storage, row: ConceptWeights, wanted: Compression) -> Held | None:
    """What the stored file says of itself; None where nothing of it can be made smaller."""
    try:
        shapes = typed_shapes(storage, row)
    except (OSError, ValueError):
        return None
    ranks = [_rank(parts) for parts in _by_site(shapes).values()]
    if _small_already(row) or not any(ranks):
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


def _small_already(row: ConceptWeights) -> str:
    """Why weights of this method cannot be made smaller; empty where they can. Merges make changes that can."""
    card = CARDS.get(row.method)
    return card.small_already if card is not None else ""


def _check(row: ConceptWeights, found: Held | None, wanted: Compression) -> None:
    if found is None:
        why = _small_already(row) or "These weights hold words alone."
        raise Invalid.at(
            "/weights", f"Nothing of these weights can be made smaller. {why}", code="nothing-to-compress"
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


def _by_site(shapes: dict[str, tuple[str, list[int]]]) -> dict[str, dict[str, list[int]]]:
    """{site: {part: shape}} of everything but the words."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, (_, shape) in shapes.items():
        site, _, part = name.rpartition(".")
        if not site.startswith("token."):
            found.setdefault(site, {})[part] = shape
    return found


def _rank(parts: dict[str, list[int]]) -> int:
    """The highest rank that a site can be cut to: the rank of its factors or of the rows that a merge shares, else the
    smaller side of the matrix that its parts make (`worker.ml.compression.held`).
    """
    sides = [0]
    match parts:
        case {"delta": [rows, *columns]} if columns:
            sides = [rows, prod(columns)]
        case {"magnitude": [rows], "down": [_, *columns]}:
            sides = [rows, prod(columns)]
        case {"down": [rank, *_]} | {"rows": [rank, _]}:
            sides = [rank]
        case {"first_up": [rows, _], "first_down": [_, across]}:
            sides = [rows, across]
        case {"first": [above, left], "second": [rows, across]}:
            sides = [above * rows, left * across]
        case {"first": [above, left], "second_up": [rows, _], "second_down": [_, across]}:
            sides = [above * rows, left * across]
    return min(sides)
