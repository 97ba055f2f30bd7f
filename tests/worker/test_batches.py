"""Several jobs in one executor at once, with drills: each keeps its own events, cancel, inputs and end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.worker.installation import Installation, installation


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("studio")) as studio:
        studio.start()
        studio.until(lambda: "executor_ready" in studio.log())
        yield studio


def busy(studio: Installation) -> None:
    """The executor draws eight pictures, which leave no room for others: what is asked for now waits together."""
    job_id = studio.generate("step_s=0.1", num_images=8)
    studio.at_step(job_id, 1)


def test_jobs_are_drawn_together_and_each_has_its_own_story(studio: Installation) -> None:
    busy(studio)
    ids = [studio.generate(f"number {n}", num_images=n, seed=10 * n) for n in (1, 2, 3)]
    for count, job_id in enumerate(ids, 1):
        job = studio.ended(job_id)
        assert (job.state, job.attempt, job.shared) == ("succeeded", 1, True), job.error
        images = studio.images(job_id)
        assert [image.seed for image in images] == [10 * count + index for index in range(count)]
        assert job.result == {"images": [image.id for image in images]}
        shown = [event.data["id"] for event in studio.events(job_id) if event.type == "image"]
        assert shown == [image.id for image in images]
        assert [event.type for event in studio.events(job_id)].count("done") == 1
        staging = studio.settings.work_dir / "staging" / job_id
        studio.until(lambda staging=staging: not staging.exists())
    first_ends = min(studio.job(each).finished_at for each in ids)  # type: ignore[type-var]
    assert all(studio.job(each).started_at < first_ends for each in ids)  # type: ignore[operator]


def test_one_is_cancelled_and_the_others_go_on(studio: Installation) -> None:
    busy(studio)
    ids = [studio.generate("step_s=0.3", num_images=4) for _ in range(2)]
    studio.until(lambda: studio.images(ids[0]))
    studio.cancel(ids[0])
    kept = len(studio.images(ids[0]))
    cancelled, other = studio.ended(ids[0]), studio.ended(ids[1])
    assert (cancelled.state, other.state, other.attempt) == ("cancelled", "succeeded", 1)
    assert len(studio.images(ids[0])) == kept < 4
    assert len(studio.images(ids[1])) == 4
    assert cancelled.finished_at is not None
    assert other.finished_at is not None
    assert cancelled.finished_at < other.finished_at


def test_one_that_fails_takes_nobody_with_it(studio: Installation) -> None:
    busy(studio)
    bad = studio.generate("fail=input_invalid", num_images=2)
    good = studio.generate("fine", num_images=2)
    job, other = studio.ended(bad), studio.ended(good)
    assert job.error is not None
    assert (job.state, job.error["code"], job.shared) == ("failed", "input_invalid", True)
    assert (other.state, other.attempt, other.shared) == ("succeeded", 1, True)
    assert studio.notes(good) == []


def test_a_device_that_is_spoilt_in_company_counts_once_and_all_run_alone(studio: Installation) -> None:
    busy(studio)
    ready = studio.log().count("executor_ready")
    bad = studio.generate("fail=device_fault sticky=1", num_images=2)
    good = studio.generate("fine", num_images=2)
    other = studio.ended(good)
    assert (other.state, other.alone, other.deaths) == ("succeeded", True, 0)
    assert studio.notes(good) == ["device_fault"]
    job = studio.ended(bad)
    assert job.error is not None
    assert (job.state, job.error["code"], job.alone) == ("failed", "device_fault", True)
    studio.until(lambda: studio.log().count("executor_ready") >= ready + 2)
    assert studio.ended(studio.generate()).state == "succeeded"  # two faults, not three: the slot serves


def test_a_damaged_input_ends_its_own_job_only(studio: Installation) -> None:
    busy(studio)
    stored = studio.storage.put(b"weights")
    used = {"file": {"id": "w", "storage_key": stored.key, "sha256": "0" * 64}, "scale": 1.0, "tokens": [],
            "concepts": []}  # fmt: skip
    bad, good = studio.generate(weights=[used]), studio.generate()
    job, other = studio.ended(bad), studio.ended(good)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "input_invalid")
    assert (other.state, other.attempt) == ("succeeded", 1)


def test_a_stopped_worker_gives_all_of_them_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    with installation(tmp_path_factory.mktemp("stopped")) as studio:
        ids = [studio.generate("step_s=0.5", num_images=4) for _ in range(2)]
        first = studio.start()
        studio.until(lambda: all(studio.images(each) for each in ids))
        first.terminate()
        assert first.wait(30) == 0
        assert [(studio.job(each).state, studio.job(each).attempt) for each in ids] == [("queued", 0)] * 2
        studio.start()
        for each in ids:
            job = studio.ended(each)
            assert (job.state, job.attempt, job.alone) == ("succeeded", 1, False)
            assert len(studio.images(each)) == 4
            assert studio.notes(each)[0] == "released"
