"""The maintenance loop: rescue by counters that stand still, one leader, hints that are sent again, rubbish."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from backend.identifiers import new_id
from backend.maintenance import Maintenance, StandstillWatch
from backend.models import LOCAL_OWNER, Job, Leader, Outbox, now
from backend.queue import Hint
from backend.rubbish import collect_rubbish
from backend.services import jobs, leases
from backend.services.job_events import note
from tests.worker.installation import Installation, installation


class Ear:
    """A doorbell that remembers who was rung for."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def ring(self, hints: list[Hint]) -> None:
        self.heard += [hint.job_id for hint in hints]


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Installation]:
    with installation(tmp_path, lease_s=0.3) as studio:
        yield studio


def maintenance(studio: Installation, ear: Ear | None = None) -> Maintenance:
    return Maintenance(studio.settings, studio.database, studio.storage, ear or Ear())  # type: ignore[arg-type]


def claimed(studio: Installation) -> Job:
    studio.train(steps=3)
    with studio.database.write() as session:
        job = leases.claim(
            session, "w", queues=["train_any"], kinds={"train": 1}, base_hashes=[studio.base_hash]
        )
    assert job is not None
    return job


def test_a_counter_stands_still_only_after_time_and_sweeps() -> None:
    watch = StandstillWatch()
    for at in (0.0, 1.0, 2.0):
        watch.look({"job": 1}, at)
    assert not watch.still("job", 2.0, 2.0)  # long enough, but too few looks
    watch.look({"job": 1}, 3.0)
    assert watch.still("job", 3.0, 3.0)
    assert not watch.still("job", 3.1, 3.0)
    watch.look({"job": 2}, 4.0)
    assert not watch.still("job", 0.5, 9.0)
    watch.look({}, 5.0)
    assert not watch.still("job", 0.0, 9.0)


def test_a_silent_job_is_rescued_and_a_beating_one_is_not(studio: Installation) -> None:
    silent, beating = claimed(studio), claimed(studio)
    ear = Ear()
    loop = maintenance(studio, ear)
    for _ in range(6):
        loop.sweep()
        time.sleep(0.1)
        with studio.database.write() as session:
            leases.heartbeat(session, "w", [leases.Unit(job=beating.id, fence=beating.fence)])
    assert studio.job(silent.id).state == "queued"
    assert studio.job(silent.id).fence == silent.fence + 1
    assert studio.notes(silent.id) == ["worker_lost"]
    assert studio.job(beating.id).state == "running"
    assert silent.id in ear.heard


def test_one_loop_leads_and_another_takes_over_when_it_falls_silent(studio: Installation) -> None:
    first, second = maintenance(studio), maintenance(studio)
    assert first.sweep()
    assert not second.sweep()
    assert first.sweep()
    deadline = time.monotonic() + 3
    while not second.sweep():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not first.sweep()
    with studio.database.read() as session:
        assert session.query(Leader).count() == 1


def test_hints_are_sent_again_while_the_job_waits(studio: Installation) -> None:
    waiting, done = studio.train(steps=1), studio.train(steps=1)
    studio.cancel(done)
    with studio.database.write() as session:
        for row in session.query(Outbox):
            row.not_before = now()
    ear = Ear()
    loop = maintenance(studio, ear)
    loop.sweep()
    loop.sweep()
    assert ear.heard == [waiting]
    with studio.database.read() as session:
        [row] = session.query(Outbox)
        assert (row.ref, row.tries) == (waiting, 1)


def test_purges_remove_files(studio: Installation) -> None:
    file = studio.storage.put(b"photo")
    with studio.database.write() as session:
        session.add(Outbox(owner_id=LOCAL_OWNER, topic="purge", ref=file.key))
    maintenance(studio).sweep()
    assert list(studio.storage.keys()) == []
    with studio.database.read() as session:
        assert session.query(Outbox).count() == 0


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """On both databases; a training may run for two seconds."""
    url = request.getfixturevalue("servers").fresh_database() if request.param == "postgres" else ""
    with installation(tmp_path, database_url=url, lease_s=30.0, max_training_s=2.0) as studio:
        yield studio


def test_t12_jobs_that_waited_too_long_expire(either: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    late, waiting = either.train(steps=1), either.train(steps=1)
    with either.database.write() as session:
        session.get_one(Job, late).expires_at = now() - timedelta(seconds=2)
    if (
        not either.database.sqlite
    ):  # F26: the clock of the process that sweeps is a month ahead of the database's
        monkeypatch.setattr("backend.maintenance.now", lambda: now() + timedelta(days=30))
    maintenance(either).sweep()
    job = either.job(late)
    assert (job.state, job.error and job.error["code"]) == ("failed", "expired")
    assert either.job(waiting).state == "queued"


def test_t12_an_attempt_that_runs_too_long_is_told_to_stop_once(either: Installation) -> None:
    runaway, drawing = claimed(either), either.generate()
    with either.database.write() as session:
        told = {"queues": ["gen_any"], "kinds": {"generate": 1}, "base_hashes": [either.base_hash]}
        assert leases.claim(session, "w", **told) is not None  # type: ignore[arg-type]
    loop, ear = maintenance(either), Ear()
    loop._doorbell = ear  # type: ignore[assignment]
    for _ in range(4):
        loop.sweep()
        time.sleep(0.1)
    assert either.job(runaway.id).timed_out_at is None  # four sweeps, but not two seconds
    time.sleep(1.8)
    for _ in range(2):
        loop.sweep()
    assert ear.heard.count(runaway.id) == 1
    assert either.job(runaway.id).timed_out_at is not None
    assert (either.job(runaway.id).state, either.job(drawing).timed_out_at) == ("running", None)


def test_t12_a_new_attempt_has_the_whole_time_again(either: Installation) -> None:
    first = claimed(either)
    loop = maintenance(either)
    loop.sweep()
    with either.database.write() as session:
        leases.release(session, leases.Unit(job=first.id, fence=first.fence), note("released", "Later."))
    time.sleep(2.1)
    with either.database.write() as session:
        again = leases.claim(
            session, "w", queues=["train_any"], kinds={"train": 1}, base_hashes=[either.base_hash]
        )
    assert again is not None
    for _ in range(5):
        loop.sweep()
    assert either.job(first.id).timed_out_at is None


def test_rubbish_goes_and_what_is_needed_stays(studio: Installation) -> None:
    job_id = studio.train([b"a photo that a job needs"], steps=1)
    orphan = studio.storage.put(b"an object without a row")
    ended = studio.train(steps=1)
    studio.cancel(ended)
    work = studio.settings.work_dir
    for name in (job_id, ended, new_id()):
        (work / "checkpoints" / name).mkdir(parents=True)
    assert (
        collect_rubbish(studio.settings, studio.database, studio.storage) == 1
    )  # the ended job's checkpoints
    assert orphan.key in set(studio.storage.keys())  # younger than a day
    collect_rubbish(studio.settings, studio.database, studio.storage, older_than_s=0)
    assert orphan.key not in set(studio.storage.keys())
    assert [folder.name for folder in (work / "checkpoints").iterdir()] == [job_id]
    with studio.database.read() as session:
        assert jobs.get(session, LOCAL_OWNER, job_id).state == "queued"
