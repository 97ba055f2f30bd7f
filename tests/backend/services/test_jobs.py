"""Jobs as the web process treats them: accept, cancel, finish, retry, list, events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.db import Database
from backend.errors import Conflict, Invalid, NotFound, TooMany
from backend.models import LOCAL_OWNER, Base, Job, JobEvent, Outbox, Owner
from backend.schemas.generations import GenerateSpec
from backend.services import jobs

SPEC = GenerateSpec(
    prompt="a dog", text="a dog", negative_prompt="", base="tiny", base_hash="h", weights=[], num_images=1, seed=1,
    num_inference_steps=2, guidance_scale=1.0, scheduler="ddim", width=64, height=64,
)  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    Base.metadata.create_all(database.engine)
    with database.write() as session:
        session.add(Owner(id=LOCAL_OWNER, name="local"))
        session.add(Owner(id="another", name="another"))
    yield database
    database.close()


def enqueue(database: Database, owner: str = LOCAL_OWNER, **more: object) -> str:
    with database.write() as session:
        job = jobs.enqueue(
            session, owner_id=owner, kind="generate", queue="gen_any", request={"prompt": "a dog"}, spec=SPEC,
            base="tiny", base_hash="h", **more,  # type: ignore[arg-type]
        )  # fmt: skip
        assert session.info["hints"][-1].job_id == job.id
        return job.id


def events(database: Database, job_id: str) -> list[tuple[int, str, dict[str, object]]]:
    with database.read() as session:
        return [(e.seq, e.type, e.data) for e in jobs.events_after(session, LOCAL_OWNER, [job_id], {}, 100)]


def test_accepted_is_a_row_an_event_and_a_hint(database: Database) -> None:
    job_id = enqueue(database)
    assert events(database, job_id) == [(1, "state", {"state": "queued", "attempt": 0})]
    with database.read() as session:
        shown = jobs.to_schema(session, jobs.get(session, LOCAL_OWNER, job_id))
        assert [row.ref for row in session.query(Outbox)] == [job_id]
    assert (shown.state, shown.queue_position, shown.attempt) == ("queued", 0, 0)
    assert shown.progress is not None
    assert shown.progress.phase == "waiting"


def test_another_owner_finds_nothing(database: Database) -> None:
    job_id = enqueue(database)
    with database.write() as session:
        for act in (jobs.get, jobs.request_cancel, jobs.request_finish, jobs.retry):
            with pytest.raises(NotFound):
                act(session, "another", job_id)
        assert jobs.events_after(session, "another", [job_id], {}, 10) == []


def test_a_waiting_job_is_cancelled_at_once_and_again_without_harm(database: Database) -> None:
    job_id = enqueue(database)
    for _ in range(3):
        with database.write() as session:
            assert jobs.request_cancel(session, LOCAL_OWNER, job_id).state == "cancelled"
    assert [(kind, data["state"]) for _, kind, data in events(database, job_id)] == [
        ("state", "queued"), ("state", "cancelled"), ("done", "cancelled"),
    ]  # fmt: skip


def test_what_has_ended_cannot_be_cancelled_and_only_failures_are_retried(database: Database) -> None:
    job_id = enqueue(database)
    with database.write() as session:
        with pytest.raises(Conflict):
            jobs.retry(session, LOCAL_OWNER, job_id)
        assert jobs.transition(session, job_id, "failed", expected=("queued",))
    with database.write() as session, pytest.raises(Conflict):
        jobs.request_cancel(session, LOCAL_OWNER, job_id)
    with database.write() as session:
        again = jobs.retry(session, LOCAL_OWNER, job_id)
        assert (again.retry_of, again.state, again.spec_hash) == (
            job_id, "queued", jobs.get(session, LOCAL_OWNER, job_id).spec_hash,
        )  # fmt: skip


def test_only_a_running_training_can_be_finished(database: Database) -> None:
    job_id = enqueue(database)
    with database.write() as session, pytest.raises(Conflict):
        jobs.request_finish(session, LOCAL_OWNER, job_id)
    with database.write() as session:
        session.get_one(Job, job_id).kind = "train"
        session.flush()
        assert jobs.transition(session, job_id, "running", expected=("queued",), worker_id="w")
        assert jobs.request_finish(session, LOCAL_OWNER, job_id).finish_requested_at is not None


def test_a_transition_from_another_state_changes_nothing(database: Database) -> None:
    job_id = enqueue(database)
    with database.write() as session:
        assert not jobs.transition(session, job_id, "succeeded", expected=("running",))
    assert len(events(database, job_id)) == 1


def test_the_owner_has_a_limit_of_waiting_jobs(database: Database) -> None:
    enqueue(database, max_queued_jobs=1)
    enqueue(database, owner="another", max_queued_jobs=1)
    with pytest.raises(TooMany):
        enqueue(database, max_queued_jobs=1)


def test_the_same_work_is_not_accepted_twice_while_it_lives(database: Database) -> None:
    first = enqueue(database, uniq_key="k")
    with pytest.raises(Conflict):
        enqueue(database, uniq_key="k")
    with database.write() as session:
        jobs.request_cancel(session, LOCAL_OWNER, first)
    enqueue(database, uniq_key="k")


def test_pages_are_newest_first_and_end(database: Database) -> None:
    ids = [enqueue(database) for _ in range(5)]
    enqueue(database, owner="another")
    seen, cursor = [], None
    with database.read() as session:
        for _ in range(3):
            rows, cursor = jobs.page(session, LOCAL_OWNER, limit=2, cursor=cursor)
            seen += [row.id for row in rows]
        with pytest.raises(Invalid):
            jobs.page(session, LOCAL_OWNER, cursor="x")
        assert jobs.page(session, LOCAL_OWNER, state="running") == ([], None)
    assert seen == ids[::-1]
    assert cursor is None


def test_events_replay_after_a_number(database: Database) -> None:
    job_id = enqueue(database)
    with database.write() as session:
        jobs.request_cancel(session, LOCAL_OWNER, job_id)
    with database.read() as session:
        later = jobs.events_after(session, LOCAL_OWNER, [job_id], {job_id: 2}, 10)
        assert [event.seq for event in later] == [3]
        assert session.query(JobEvent).count() == 3
