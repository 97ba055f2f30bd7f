"""Jobs that are claimed together: which, in whose turn, and what the death of a batch means for each."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from backend.db import Database
from backend.models import LOCAL_OWNER, Job
from backend.schemas.executor import Unit
from backend.schemas.generations import GenerateSpec
from backend.services import generations, jobs, leases
from tests.backend.services.test_leases import CAUSE, HASHES, KINDS, QUEUES, database, in_write

__all__ = ["database"]
SPEC = GenerateSpec(
    prompt="x", text="x", negative_prompt="", base="tiny", base_hash="h", weights=[], num_images=1, seed=1,
    num_inference_steps=2, guidance_scale=2.0, scheduler="ddim", width=64, height=64,
)  # fmt: skip


def enqueue(
    database: Database, owner: str = LOCAL_OWNER, *, sides: Sequence[str] = (), **changes: object
) -> str:
    spec = SPEC.model_copy(update=changes)
    with database.write() as session:
        return jobs.enqueue(
            session, owner_id=owner, kind="generate", queue="gen_any", request={}, spec=spec, base="tiny",
            base_hash="h", batch_key=generations.batch_key(spec, sides),
        ).id  # fmt: skip


def claim_all(database: Database) -> list[Job]:
    """The best job and those beside it."""
    able = {"queues": QUEUES, "kinds": KINDS, "base_hashes": HASHES}
    with database.write() as session:
        first = leases.claim(session, "w", **able)  # type: ignore[arg-type]
        return [first, *leases.claim_beside(session, "w", first, **able)] if first else []  # type: ignore[arg-type]


def ids(found: Sequence[Job]) -> list[str]:
    return [job.id for job in found]


def row(database: Database, job_id: str) -> Job:
    with database.read() as session:
        return session.get_one(Job, job_id)


OTHERS: list[dict[str, object]] = [
    {"width": 72}, {"scheduler": "euler"}, {"num_inference_steps": 3}, {"guidance_scale": 1.0}, {"sides": ["weights"]},
]  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_only_what_shares_a_call_is_claimed_together(database: Database, other: dict[str, object]) -> None:
    first = enqueue(database)
    different = enqueue(database, **other)  # type: ignore[arg-type]
    alike = enqueue(database, text="another", guidance_scale=4.0, sides=["text"])
    assert ids(claim_all(database)) == [first, alike]
    assert ids(claim_all(database)) == [different]
    assert (row(database, first).shared, row(database, different).shared) == (True, False)


def test_owners_take_turns_in_a_batch_too(database: Database) -> None:
    mine = [enqueue(database) for _ in range(9)]
    other = [enqueue(database, "b") for _ in range(2)]
    assert ids(claim_all(database)) == [mine[0], other[0], mine[1], other[1], *mine[2:6]]


def test_eight_pictures_at_most(database: Database) -> None:
    large = enqueue(database, num_images=6)
    enqueue(database, num_images=3)
    small = enqueue(database, num_images=2)
    assert ids(claim_all(database)) == [large, small]
    full = enqueue(database, num_images=8)
    assert ids(claim_all(database))[1:] == []
    assert ids(claim_all(database)) == [full]


def test_a_shared_death_does_not_count_and_ends_the_company(database: Database) -> None:
    both = [enqueue(database) for _ in range(2)]
    for job in claim_all(database):
        unit = Unit(job=job.id, fence=job.fence)
        assert in_write(database, leases.requeue_after_death, unit, CAUSE, 3) == "queued"
    assert [(row(database, each).deaths, row(database, each).alone) for each in both] == [(0, True)] * 2
    behind = enqueue(database)
    assert ids(claim_all(database)) == [both[0]]
    assert ids(claim_all(database)) == [both[1]]
    assert ids(claim_all(database)) == [behind]
    alone = row(database, both[0])
    assert alone.shared is False
    unit = Unit(job=alone.id, fence=alone.fence)
    assert in_write(database, leases.requeue_after_death, unit, CAUSE, 3) == "queued"
    assert (row(database, both[0]).deaths, row(database, both[0]).alone) == (1, True)


def test_a_cancel_wins_over_the_way_back_alone(database: Database) -> None:
    both = [enqueue(database) for _ in range(2)]
    found = claim_all(database)
    with database.write() as session:
        jobs.request_cancel(session, LOCAL_OWNER, both[0])
    states = [
        in_write(database, leases.requeue_after_death, Unit(job=job.id, fence=job.fence), CAUSE, 3)
        for job in found
    ]
    assert states == ["cancelled", "queued"]
