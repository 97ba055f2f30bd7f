"""Claims, leases and ends of attempts, on SQLite and on PostgreSQL: who may write, who comes first, who wins."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy.exc import OperationalError

from backend.db import Database
from backend.errors import Conflict
from backend.models import LOCAL_OWNER, Base, Job, Owner, now
from backend.schemas.executor import Unit
from backend.schemas.generations import GenerateSpec
from backend.services import job_events, jobs, leases, publishing
from backend.services.job_events import note

Result = TypeVar("Result")
QUEUES, KINDS, HASHES = ("gen_any",), {"generate": 1}, {"h"}
CAUSE = note("executor_died", "It is gone.")
ERROR = {"code": "internal", "retryable": True, "message": "It went wrong.", "detail_id": "x"}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    else:
        url = request.getfixturevalue("servers").fresh_database()
    database = Database(url)
    Base.metadata.create_all(database.engine)
    with database.write() as session:
        session.add_all(Owner(id=name, name=name) for name in (LOCAL_OWNER, "b"))
    yield database
    database.close()


def enqueue(database: Database, owner: str = LOCAL_OWNER, prompt: str = "x") -> str:
    spec = GenerateSpec(
        prompt=prompt, text="x", negative_prompt="", base="tiny", base_hash="h", weights=[], num_images=1, seed=1,
        num_inference_steps=2, guidance_scale=1.0, scheduler="ddim", width=64, height=64,
    )  # fmt: skip
    with database.write() as session:
        return jobs.enqueue(
            session, owner_id=owner, kind="generate", queue="gen_any", request={}, spec=spec, base="tiny",
            base_hash="h", max_queued_jobs=1000,
        ).id  # fmt: skip


def claim(database: Database, worker: str = "w", **more: object) -> Job | None:
    told = {"queues": QUEUES, "kinds": KINDS, "base_hashes": HASHES, **more}
    return in_write(database, lambda session: leases.claim(session, worker, **told))  # type: ignore[arg-type]


def held(database: Database, worker: str = "w") -> Unit:
    """A fresh job that the worker has just claimed."""
    enqueue(database)
    job = claim(database, worker)
    assert job is not None
    return Unit(job=job.id, fence=job.fence)


def job_of(database: Database, unit: Unit) -> Job:
    with database.read() as session:
        return session.get_one(Job, unit.job)


def in_write(database: Database, act: Callable[..., Result], *arguments: object) -> Result:
    """In a transaction; again when the disk was so busy that the writer's turn took too long, as a supervisor does."""
    while True:
        try:
            with database.write() as session:
                return act(session, *arguments)
        except OperationalError as error:
            if "locked" not in str(error):
                raise


def together(count: int, act: Callable[[int], None]) -> None:
    """Run ``act`` in threads that begin at once; raises what any of them raised."""
    barrier, errors = threading.Barrier(count), []

    def body(number: int) -> None:
        barrier.wait()
        try:
            act(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_eight_claimers_take_two_hundred_jobs_once_each(database: Database) -> None:
    ids = [enqueue(database) for _ in range(200)]
    taken: Counter[str] = Counter()

    def work(number: int) -> None:
        idle = 0
        while idle < 3:
            job = claim(database, f"w{number}")
            if job is None:
                idle += 1
                time.sleep(0.01)
                continue
            idle = 0
            taken[job.id] += 1
            unit = Unit(job=job.id, fence=job.fence)
            assert in_write(
                database, lambda session, unit=unit: publishing.succeed(session, unit, result={}, metrics={})
            )

    together(8, work)
    assert taken == Counter(ids)
    with database.read() as session:
        assert {job.state for job in session.query(Job)} == {"succeeded"}
        assert {job.attempt for job in session.query(Job)} == {1}


def test_owners_take_turns_and_generations_go_first(database: Database) -> None:
    first = [enqueue(database, LOCAL_OWNER) for _ in range(3)]
    other = [enqueue(database, "b") for _ in range(2)]
    with database.write() as session:
        session.get_one(Job, first[2]).priority = 99
    order = [job.id for _ in range(5) if (job := claim(database)) is not None]
    assert order == [first[2], other[0], first[0], other[1], first[1]]


def test_only_what_this_worker_can_do(database: Database) -> None:
    job_id = enqueue(database)
    assert claim(database, queues=("other",)) is None
    assert claim(database, kinds={"train": 1}) is None
    assert claim(database, kinds={"generate": 0}) is None  # written by a newer version
    assert claim(database, base_hashes={"other"}) is None
    with database.write() as session:
        session.get_one(Job, job_id).not_before = now() + timedelta(minutes=1)
    assert claim(database) is None


def test_a_stale_fence_changes_nothing(database: Database) -> None:
    unit = held(database)
    stale = Unit(job=unit.job, fence=unit.fence - 1)
    before = job_of(database, unit).last_event
    assert in_write(database, leases.release, stale, CAUSE) is None
    assert in_write(database, leases.fail, stale, ERROR, 3) is None
    assert in_write(database, leases.cancelled, stale) is None
    assert in_write(database, leases.requeue_after_death, stale, CAUSE, 3) is None
    assert in_write(database, leases.report, stale, [CAUSE]) is False
    assert in_write(database, leases.checkpointed, stale, 5) is False
    assert in_write(database, leases.heartbeat, "w", [stale]) == {}
    with database.write() as session:
        assert not publishing.succeed(session, stale, result={}, metrics={})
    job = job_of(database, unit)
    assert (job.state, job.last_event, job.hb_seq) == ("running", before, 0)


def test_a_heartbeat_moves_the_counter_and_brings_what_people_ask(database: Database) -> None:
    unit = held(database)
    assert in_write(database, leases.heartbeat, "w", [unit]) == {
        unit.job: leases.Flags(cancel=False, finish=False)
    }
    in_write(database, jobs.request_cancel, LOCAL_OWNER, unit.job)
    assert in_write(database, leases.heartbeat, "w", [unit]) == {
        unit.job: leases.Flags(cancel=True, finish=False)
    }
    assert in_write(database, leases.heartbeat, "another", [unit]) == {}
    assert job_of(database, unit).hb_seq == 2


def test_a_release_does_not_count(database: Database) -> None:
    unit = held(database)
    assert in_write(database, leases.release, unit, CAUSE) == "queued"
    job = job_of(database, unit)
    assert (job.state, job.attempt, job.worker_id) == ("queued", 0, None)
    again = claim(database)
    assert again is not None
    assert (again.fence, again.attempt) == (unit.fence + 1, 1)


def test_retryable_errors_wait_and_come_back_until_the_attempts_are_spent(database: Database) -> None:
    unit = held(database)
    assert in_write(database, leases.fail, unit, ERROR, 2) == "queued"
    assert job_of(database, unit).not_before > now() + timedelta(seconds=5)
    with database.write() as session:
        session.get_one(Job, unit.job).not_before = now()
    again = claim(database)
    assert again is not None
    assert in_write(database, leases.fail, Unit(job=again.id, fence=again.fence), ERROR, 2) == "failed"
    assert job_of(database, unit).error == ERROR


def test_permanent_errors_end_the_job(database: Database) -> None:
    unit = held(database)
    assert in_write(database, leases.fail, unit, {**ERROR, "retryable": False}, 3) == "failed"
    assert job_of(database, unit).finished_at is not None


def test_three_deaths_without_a_newer_checkpoint_end_the_job(database: Database) -> None:
    unit = held(database)
    for expected in ("queued", "queued", "failed"):
        assert in_write(database, leases.requeue_after_death, unit, CAUSE, 3) == expected
        if expected == "queued":
            with database.write() as session:
                session.get_one(Job, unit.job).not_before = now()
            job = claim(database)
            assert job is not None
            unit = Unit(job=job.id, fence=job.fence)
    error = job_of(database, unit).error
    assert error is not None
    assert error["code"] == "worker_lost"


def test_a_checkpoint_between_deaths_starts_the_count_anew(database: Database) -> None:
    unit = held(database)
    for step in range(1, 6):
        in_write(database, leases.checkpointed, unit, step)
        assert in_write(database, leases.requeue_after_death, unit, CAUSE, 3) == "queued"
        job = claim(database)
        assert job is not None
        unit = Unit(job=job.id, fence=job.fence)
    assert job_of(database, unit).deaths == 1


ENDS: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
    "release": (leases.release, (CAUSE,)),
    "fail": (leases.fail, (ERROR, 3)),
    "death": (leases.requeue_after_death, (CAUSE, 3)),
    "stopped": (leases.cancelled, ()),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("late", [False, True])
def test_a_cancel_wins_over_every_way_back_to_the_queue(database: Database, end: str, late: bool) -> None:
    unit = held(database)
    in_write(database, jobs.request_cancel, LOCAL_OWNER, unit.job)
    if late:
        in_write(database, leases.time_out, unit)
    act, arguments = ENDS[end]
    assert in_write(database, act, unit, *arguments) == "cancelled"
    assert job_of(database, unit).state == "cancelled"


@pytest.mark.parametrize("end", ENDS)
def test_t12_after_its_deadline_a_job_ends_as_timed_out_whatever_ends_it(
    database: Database, end: str
) -> None:
    unit = held(database)
    assert in_write(database, leases.time_out, unit)
    assert not in_write(database, leases.time_out, unit)
    flags = leases.Flags(cancel=False, finish=False, timed_out=True)
    assert in_write(database, leases.heartbeat, "w", [unit]) == {unit.job: flags}
    act, arguments = ENDS[end]
    assert in_write(database, act, unit, *arguments) == "failed"
    job = job_of(database, unit)
    assert job.error is not None
    assert (job.state, job.error["code"], job.error["retryable"]) == ("failed", "timeout", False)
    assert not in_write(database, leases.time_out, unit)


def test_t12_a_result_that_comes_after_the_deadline_is_kept(database: Database) -> None:
    unit = held(database)
    in_write(database, leases.time_out, unit)
    with database.write() as session:
        assert publishing.succeed(session, unit, result={"images": []}, metrics={})
    assert job_of(database, unit).state == "succeeded"


def test_t12_the_time_to_wait_begins_anew_with_each_return_to_the_queue(database: Database) -> None:
    unit = held(database)
    first = job_of(database, unit).expires_at
    assert first is not None
    assert timedelta(days=6) < first - now() < timedelta(days=8)
    in_write(database, leases.release, unit, CAUSE)
    again = job_of(database, unit).expires_at
    assert again is not None
    assert again > first


def test_cancel_and_success_race_and_exactly_one_wins(database: Database) -> None:
    outcomes: Counter[str] = Counter()
    for _ in range(40):
        unit = held(database)

        def race(number: int, unit: Unit = unit) -> None:
            with database.write() as session:
                if number == 0:
                    try:
                        jobs.request_cancel(session, LOCAL_OWNER, unit.job)
                    except Conflict:
                        return
                elif not publishing.succeed(session, unit, result={"images": []}, metrics={}):
                    assert leases.cancelled(session, unit)

        together(2, race)
        job = job_of(database, unit)
        assert (job.state == "succeeded") != (job.cancel_requested_at is not None)
        with database.read() as session:
            written = job_events.events_after(session, LOCAL_OWNER, [unit.job], {}, 100)
        assert [event.seq for event in written] == list(range(1, len(written) + 1))
        assert sum(event.type == "done" for event in written) == 1
        outcomes[job.state] += 1
    assert set(outcomes) <= {"succeeded", "cancelled"}
