"""Processes that die at the worst moments, with drills instead of tensors: always one result, and a note of what was.

The numbers are those of reliability 3.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.models import Worker
from backend.rubbish import collect_rubbish
from tests.worker.drill import picture
from tests.worker.installation import Installation, installation


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Installation]:
    with installation(tmp_path) as studio:
        yield studio


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A supervisor that stays alive: only its executors die."""
    with installation(tmp_path_factory.mktemp("running")) as studio:
        studio.start()
        studio.until(lambda: "executor_ready" in studio.log())
        yield studio


def succeeded_once(studio: Installation, job_id: str, steps: int = 10) -> None:
    """I1, I2, I6: one end, one result whose file is what its row says, gapless events."""
    job = studio.ended(job_id)
    assert job.state == "succeeded", (job.error, studio.log()[-3000:])
    assert [event.type for event in studio.events(job_id)].count("done") == 1
    if job.kind == "train":
        [weights] = studio.weights_of(job_id)
        assert weights.report["steps"] == steps
        assert studio.storage.path(weights.storage_key).stat().st_size == weights.size_bytes
    else:
        assert [image.index for image in studio.images(job_id)] == list(range(len(studio.images(job_id))))


def descendants(pid: int) -> set[int]:
    """Children and children's children that live now; a process may end while it is looked at."""
    found: set[int] = set()
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found |= {int(child)} | descendants(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_f4_a_dead_executor_costs_seconds_and_a_note(running: Installation, number: int) -> None:
    job_id = running.train(steps=20, checkpoint_every=5, die_at=12, signal=int(number))
    started = time.monotonic()
    succeeded_once(running, job_id, 20)
    assert time.monotonic() - started < 10
    assert running.job(job_id).attempt == 2
    assert running.notes(job_id) == ["executor_died", "resumed"]
    message = next(event.data["message"] for event in running.events(job_id) if event.type == "note")
    assert f"signal {int(number)}" in message


def test_a_batch_of_pictures_goes_on_where_it_was(running: Installation) -> None:
    job_id = running.generate("die_at=2", num_images=4)
    succeeded_once(running, job_id)
    images = running.images(job_id)
    assert len(images) == 4
    assert len({image.sha256 for image in images}) == len({picture(5 + i).tobytes() for i in range(4)})
    assert [event.type for event in running.events(job_id)].count("image") == 4


def test_f34_a_poison_job_is_given_up_and_the_next_one_runs(running: Installation) -> None:
    poison = running.train(steps=5, die_at=0, deaths=99)
    behind = running.train(steps=5)
    job = running.ended(poison)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
    assert running.notes(poison).count("executor_died") == 3
    succeeded_once(running, behind, 5)


@pytest.mark.parametrize(
    ("place", "attempts"),
    [
        ("claim.before_commit", 1),  # F1
        ("claim.after_commit", 2),  # F2
        ("publish.after_rename", 2),  # F7
        ("publish.before_commit", 2),
        ("publish.after_commit", 1),  # F8
    ],
)
@pytest.mark.parametrize("kind", ["train", "generate"])
def test_a_supervisor_killed_at_a_failpoint(
    studio: Installation, place: str, attempts: int, kind: str
) -> None:
    once = studio.folder / "once"
    once.touch()
    job_id = studio.train(checkpoint_every=5) if kind == "train" else studio.generate()
    first = studio.start(MOONGATE_FAILPOINTS=f"{place}=kill:{once}")
    assert first.wait(20) == -signal.SIGKILL
    studio.start()
    succeeded_once(studio, job_id)
    assert studio.job(job_id).attempt == attempts
    lost = studio.notes(job_id).count("worker_lost")
    assert lost == attempts - 1
    collect_rubbish(studio.settings, studio.database, studio.storage, older_than_s=0)
    kept = {row.storage_key for row in studio.weights_of(job_id)}
    kept |= {key for image in studio.images(job_id) for key in (image.storage_key, image.thumbnail_key)}
    others = set(studio.storage.keys()) - kept
    assert len(others) == (1 if kind == "train" else 0)  # the preview


def test_f3_nothing_survives_a_killed_supervisor(studio: Installation) -> None:
    job_id = studio.train(steps=60, step_s=0.02, checkpoint_every=10)
    first = studio.start()
    studio.at_step(job_id, 17)
    children = descendants(first.pid)
    assert len(children) == 2
    first.kill()
    studio.until(lambda: not any(alive(pid) for pid in children), 2)
    studio.start()
    succeeded_once(studio, job_id, 60)
    assert studio.notes(job_id) == ["worker_lost", "resumed"]


def test_another_slot_rescues_after_the_lease(studio: Installation) -> None:
    """The dead worker's slot stays empty, so the reaper has to notice (P4, T11)."""
    job_id = studio.train(steps=40, step_s=0.05, checkpoint_every=5)
    first = studio.start(CUDA_VISIBLE_DEVICES="7")
    studio.at_step(job_id, 6)
    studio.start(CUDA_VISIBLE_DEVICES="8")
    first.kill()
    studio.until(lambda: studio.job(job_id).attempt == 2, 30)
    succeeded_once(studio, job_id, 40)
    assert "worker_lost" in studio.notes(job_id)


def test_f24_a_frozen_worker_wakes_up_and_changes_nothing(studio: Installation) -> None:
    job_id = studio.train(steps=60, step_s=0.05, checkpoint_every=5)
    frozen = studio.start(CUDA_VISIBLE_DEVICES="7")
    studio.at_step(job_id, 6)
    studio.freeze(frozen)
    studio.start(CUDA_VISIBLE_DEVICES="8")
    succeeded_once(studio, job_id, 60)
    before = studio.job(job_id)
    os.kill(frozen.pid, signal.SIGCONT)
    studio.until(lambda: "lease_lost" in studio.log() or '"state": null' in studio.log())
    time.sleep(1.0)
    after = studio.job(job_id)
    assert (after.last_event, after.fence, after.result) == (before.last_event, before.fence, before.result)
    next_job = studio.train(steps=3)
    succeeded_once(studio, next_job, 3)


@pytest.mark.parametrize("kind", ["train", "generate"])
def test_f28_a_stopped_worker_gives_its_job_back(studio: Installation, kind: str) -> None:
    training = kind == "train"
    job_id = studio.train(steps=60, step_s=0.03) if training else studio.generate("step_s=0.3", num_images=10)
    first = studio.start()
    studio.at_step(job_id, 3)
    asked = time.monotonic()
    first.terminate()
    assert first.wait(30) == 0
    assert time.monotonic() - asked < 5
    job = studio.job(job_id)
    assert (job.state, job.attempt) == ("queued", 0)
    with studio.database.read() as session:
        assert [worker.state for worker in session.query(Worker)] == ["stopped"]
    studio.start()
    succeeded_once(studio, job_id, 60)
    assert studio.job(job_id).attempt == 1
    assert studio.notes(job_id)[0] == "released"


def test_f29_a_job_of_a_newer_version_waits(studio: Installation) -> None:
    newer = studio.train(steps=3)
    with studio.database.write() as session:
        studio_job = session.get_one(type(studio.job(newer)), newer)
        studio_job.spec_version = 2
    older = studio.train(steps=3)
    studio.start()
    succeeded_once(studio, older, 3)
    assert studio.job(newer).state == "queued"


@pytest.mark.parametrize("place", ["claim.after_commit", "publish.after_rename"])
def test_f30_cancel_while_the_supervisor_is_at(studio: Installation, place: str) -> None:
    job_id = studio.train(steps=5)
    studio.start(MOONGATE_FAILPOINTS=f"{place}=sleep:1.5")
    studio.until(lambda: studio.job(job_id).state == "running")
    if place.startswith("publish"):
        studio.until(lambda: "training" in {e.data.get("phase") for e in studio.events(job_id)})
        time.sleep(0.5)
    studio.cancel(job_id)
    job = studio.ended(job_id)
    assert job.state == "cancelled"
    assert studio.weights_of(job_id) == []
