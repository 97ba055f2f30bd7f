"""The supervisor with a real executor process that does drills: claim, progress, publish, cancel, finish, refuse."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Pictures
from safetensors import safe_open

from backend.models import BaseModel, Worker
from backend.services import jobs, previews
from tests.worker.drill import BASE, picture
from tests.worker.installation import LOCAL_OWNER, Installation, installation


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("studio")) as studio:
        studio.start(MOONGATE_REDIS_URL="", MOONGATE_SECRET="s3cret")
        studio.until(lambda: "executor_ready" in studio.log())
        yield studio


def executor_pid(studio: Installation) -> int:
    """The only grandchild of the supervisor."""
    supervisor = studio.processes[-1].pid
    forkserver = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    assert len(forkserver) == 1
    [executor] = Path(f"/proc/{forkserver[0]}/task/{forkserver[0]}/children").read_text().split()
    return int(executor)


def test_a_generation_is_published_picture_by_picture(studio: Installation) -> None:
    job = studio.ended(studio.generate("a dog", num_images=3))
    images = studio.images(job.id)
    assert job.state == "succeeded"
    assert job.result == {"images": [image.id for image in images]}
    assert [image.seed for image in images] == [5, 6, 7]
    with Pictures.open(studio.storage.path(images[0].storage_key)) as stored:
        assert stored.getpixel((1, 1)) == picture(5).getpixel((1, 1))
        assert "Seed: 5" in stored.text["parameters"]  # type: ignore[attr-defined]
        assert images[0].recipe["seed"] == 5
    with Pictures.open(studio.storage.path(images[0].thumbnail_key)) as thumbnail:
        assert thumbnail.format == "WEBP"
    shown = [event.data["id"] for event in studio.events(job.id) if event.type == "image"]
    assert shown == [image.id for image in images]
    assert studio.events(job.id)[-1].data == {"state": "succeeded"}


def test_a_training_ends_with_weights_previews_and_nothing_left_behind(studio: Installation) -> None:
    job = studio.ended(studio.train(steps=12, checkpoint_every=4))
    [weights] = studio.weights_of(job.id)
    assert job.result == {"weights": weights.id}
    assert weights.report == {"steps": 12}
    with safe_open(studio.storage.path(weights.storage_key), "np") as file:
        assert list(file.keys()) == ["site.a.delta"]
    with studio.database.read() as session:
        assert previews.get(session, LOCAL_OWNER, job.id, "0").media_type == "image/png"
        shown = jobs.to_schema(session, job)
    assert shown.last_checkpoint_step == 12
    assert shown.metrics.run_s is not None
    losses = [
        point for event in studio.events(job.id) if event.type == "loss" for point in event.data["points"]
    ]
    assert [step for step, _ in losses] == list(range(1, 13))
    for folder in ("staging", "checkpoints"):
        assert not (studio.settings.work_dir / folder / job.id).exists()


def test_progress_is_stored_at_most_twice_a_second(studio: Installation) -> None:
    job = studio.ended(studio.train(steps=150, step_s=0.02))
    assert job.started_at is not None
    assert job.finished_at is not None
    seconds = (job.finished_at - job.started_at).total_seconds()
    stored = [event for event in studio.events(job.id) if event.type in ("progress", "loss")]
    assert len(stored) <= 2 * seconds + 6


def test_the_first_progress_comes_at_once(studio: Installation) -> None:
    job = studio.ended(studio.generate())
    first = next(event for event in studio.events(job.id) if event.type == "progress")
    assert (first.created_at - job.created_at).total_seconds() < 1.5


def test_a_running_job_is_cancelled_within_a_step(studio: Installation) -> None:
    job_id = studio.train(steps=1000, step_s=0.02)
    studio.at_step(job_id, 3)
    asked = time.monotonic()
    studio.cancel(job_id)
    job = studio.ended(job_id)
    assert time.monotonic() - asked < 2.5
    assert job.state == "cancelled"
    assert studio.weights_of(job_id) == []
    assert executor_pid(studio)  # the same child goes on
    assert studio.ended(studio.generate()).state == "succeeded"


def test_pictures_published_before_a_cancel_stay_and_none_comes_after(studio: Installation) -> None:
    job_id = studio.generate("step_s=0.2", num_images=40)
    studio.until(lambda: len(studio.images(job_id)) >= 2)
    studio.cancel(job_id)
    kept = len(studio.images(job_id))
    assert studio.ended(job_id).state == "cancelled"
    assert len(studio.images(job_id)) <= kept


def test_finish_keeps_what_is_learned(studio: Installation) -> None:
    job_id = studio.train(steps=1000, step_s=0.02)
    studio.at_step(job_id, 3)
    with studio.database.write() as session:
        jobs.request_finish(session, LOCAL_OWNER, job_id)
    assert studio.ended(job_id).state == "succeeded"
    [weights] = studio.weights_of(job_id)
    assert 3 <= weights.report["steps"] < 1000


def test_p10_a_training_steps_aside_for_a_picture(studio: Installation) -> None:
    training = studio.train(steps=120, step_s=0.03)
    studio.at_step(training, 30)
    picture_job = studio.ended(studio.generate(num_images=2), 5)
    assert picture_job.state == "succeeded"
    assert studio.job(training).state != "succeeded"
    job = studio.ended(training)
    assert (job.state, job.attempt) == ("succeeded", 1)
    assert studio.notes(training) == ["paused", "resumed"]


def test_what_does_not_hear_is_killed_and_the_slot_goes_on(studio: Installation) -> None:
    before = executor_pid(studio)
    job_id = studio.train(steps=1000, step_s=0.05, deaf=True)
    studio.at_step(job_id, 1)
    studio.cancel(job_id)
    assert studio.ended(job_id, 20).state == "cancelled"
    assert studio.weights_of(job_id) == []
    assert studio.ended(studio.generate()).state == "succeeded"
    assert executor_pid(studio) != before


def test_t12_a_training_beyond_its_time_is_stopped_and_the_slot_goes_on(tmp_path: Path) -> None:
    with installation(tmp_path, max_training_s=1.5) as studio:
        studio.start()
        job_id = studio.train(steps=1000, step_s=0.02, checkpoint_every=5)
        job = studio.ended(job_id)
        assert job.error is not None
        assert (job.state, job.error["code"], job.attempt) == ("failed", "timeout", 1)
        assert studio.weights_of(job_id) == []
        assert studio.ended(studio.generate()).state == "succeeded"
        assert not (studio.settings.work_dir / "checkpoints" / job_id).exists()


def test_a_damaged_input_is_named(studio: Installation) -> None:
    job_id = studio.train([b"photo one"], steps=5)
    photo = studio.job(job_id).spec["concepts"][0]["photos"][0]
    other = studio.train([b"photo two"], steps=5)
    studio.ended(other)
    studio.ended(job_id)
    studio.storage.path(photo["storage_key"]).write_bytes(b"photo onE")
    with studio.database.write() as session:
        again = jobs.enqueue(
            session, owner_id=LOCAL_OWNER, kind="train", queue="train_any", request={}, base="drill",
            base_hash=studio.base_hash, spec=_Spec(studio.job(job_id).spec),  # type: ignore[arg-type]
        ).id  # fmt: skip
    error = studio.ended(again).error
    assert error is not None
    assert error["code"] == "input_invalid"
    assert photo["id"] in error["message"]


class _Spec:
    """A spec as it stands in a row."""

    def __init__(self, body: dict[str, object]) -> None:
        self._body = body

    def model_dump(self, mode: str) -> dict[str, object]:
        return self._body


def test_weights_that_are_not_finite_are_never_published(studio: Installation) -> None:
    job_id = studio.train(steps=3, nan=True)
    studio.until(lambda: "output_invalid" in studio.notes(job_id))
    assert studio.weights_of(job_id) == []
    studio.cancel(job_id)


def test_errors_have_a_code_a_sentence_and_no_trace(studio: Installation) -> None:
    error = studio.ended(studio.train(steps=3, fail="training_diverged")).error
    assert error is not None
    assert (error["code"], error["retryable"]) == ("training_diverged", False)
    assert "Traceback" not in str(error)
    assert error["detail_id"] in studio.log()


def test_the_executor_knows_no_setting_and_has_its_own_group(studio: Installation) -> None:
    pid = executor_pid(studio)
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"MOONGATE" not in environment
    assert b"s3cret" not in environment
    assert b"OMP_WAIT_POLICY=PASSIVE" in environment
    assert os.getpgid(pid) == pid
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) > 0


def test_worker_and_base_are_registered(studio: Installation) -> None:
    with studio.database.read() as session:
        base = session.get_one(BaseModel, "drill")
        [worker] = session.query(Worker).filter_by(state="ready")
        before = worker.hb_seq
        assert base.tokenizer_json == BASE.tokenizer_json
    assert base.hash == BASE.hash
    assert "tokenizer_json" not in base.description
    assert worker.bases == {"drill": BASE.hash}

    def beats() -> bool:
        with studio.database.read() as session:
            return session.get_one(Worker, worker.id).hb_seq > before

    assert studio.until(beats)


def test_a_spoilt_device_gets_a_new_process_and_after_three_the_slot_is_defunct(tmp_path: Path) -> None:
    with installation(tmp_path) as studio:
        studio.start()
        studio.until(lambda: "executor_ready" in studio.log())
        pids = set()
        for _ in range(3):
            pids.add(executor_pid(studio))
            ready = studio.log().count("executor_ready")
            assert studio.ended(studio.train(fail="device_fault", sticky=True)).state == "failed"
            studio.until(lambda ready=ready: studio.log().count("executor_ready") > ready)
        assert len(pids) == 3
        waiting = studio.generate()

        def state() -> str:
            with studio.database.read() as session:
                return session.query(Worker).one().state

        studio.until(lambda: state() == "defunct")
        assert studio.job(waiting).state == "queued"


def test_a_second_worker_of_the_device_ends_with_a_clear_error(studio: Installation) -> None:
    second = studio.start()
    assert second.wait(20) == 3
    assert "slot_taken" in studio.log()
    studio.processes.remove(second)
