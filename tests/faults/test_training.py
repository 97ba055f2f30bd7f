"""Real trainings of a tiny base model whose processes are killed at random: the result is that of an undisturbed run.

Embedded (SQLite, ``python -m worker``) and server (PostgreSQL, Redis-compatible broker, Celery), real processes both.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.faults.test_crashes import descendants
from tests.ml.tiny_base import write_tiny_base
from tests.worker.installation import Installation, installation
from worker.ml.families import describe_base

EMBEDDED = [sys.executable, "-m", "worker"]
CELERY = [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1"]
STEPS = 40
PARAMS: dict[str, Any] = {
    "steps": STEPS, "batch_size": 2, "prior_images": 4, "prior_steps": 4, "preview_every": 20,
}  # fmt: skip
SLOWLY = "train.step=sleep:0.2"
"""On an idle machine forty steps of the tiny model are over before anything can be done to them."""
WARM_S = 240.0
"""Seconds until the libraries are loaded: ten where the machine is idle, a minute or two where it is not."""


@pytest.fixture(scope="module", params=["embedded", pytest.param("server", marks=pytest.mark.servers)])
def studio(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp(request.param)
    base = write_tiny_base(folder / "bases" / "tiny")
    described = describe_base(base)
    more: dict[str, Any] = {}
    if request.param == "server":
        servers = request.getfixturevalue("servers")
        more = {"database_url": servers.fresh_database(), "redis_url": servers.fresh_redis()}
    with installation(
        folder, base=described.id, base_hash=described.hash, base_models=[base], checkpoint_s=0.3, **more
    ) as studio:
        restart(studio)
        yield studio


def restart(studio: Installation) -> None:
    """A supervisor with a warm executor."""
    warm = studio.log().count("executor_ready")
    studio.start(CELERY if studio.settings.redis_url else EMBEDDED, MOONGATE_FAILPOINTS=SLOWLY)
    studio.until(lambda: studio.log().count("executor_ready") > warm, WARM_S)


def damage_newest_checkpoint(studio: Installation, job_id: str) -> None:
    """F6: flip one byte of its tensors."""
    found = (studio.settings.work_dir / "checkpoints" / job_id).glob("*/ckpt-*[0-9]/tensors.safetensors")
    file = max(found, key=lambda path: int(path.parent.name.removeprefix("ckpt-")))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def photos() -> list[bytes]:
    found = []
    for seed in range(3):
        out = io.BytesIO()
        noise = np.random.default_rng(seed).integers(0, 255, (48, 40, 3)).astype(np.uint8)
        Image.fromarray(noise).save(out, "PNG")
        found.append(out.getvalue())
    return found


def trained(studio: Installation, job_id: str) -> str:
    """sha256 of the only weights of the job, once it has succeeded."""
    job = studio.ended(job_id, 120)
    assert job.state == "succeeded", (job.error, studio.log()[-3000:])
    [weights] = studio.weights_of(job_id)
    content = studio.storage.path(weights.storage_key).read_bytes()
    assert hashlib.sha256(content).hexdigest() == weights.sha256
    return weights.sha256


@pytest.fixture(scope="module")
def undisturbed(studio: Installation) -> str:
    return trained(studio, studio.train(photos(), previews=["a photo of <stark> dog"], **PARAMS))


def test_a_killed_executor_is_replaced_and_the_result_is_the_same(
    studio: Installation, undisturbed: str
) -> None:
    job_id = studio.train(photos(), previews=["a photo of <stark> dog"], **PARAMS)
    for _ in range(2):
        studio.at_step(job_id, min(studio.job(job_id).step + random.randint(2, 9), STEPS - 15), 60)
        attempt = studio.job(job_id).attempt
        [forkserver] = [pid for pid in descendants(studio.processes[-1].pid) if descendants(pid)]
        [executor] = descendants(forkserver)
        os.kill(executor, signal.SIGKILL)
        studio.until(lambda attempt=attempt: studio.job(job_id).attempt > attempt)
    assert trained(studio, job_id) == undisturbed
    notes = studio.notes(job_id)
    assert notes.count("executor_died") == 2
    steps = [event.data["step"] for event in studio.events(job_id) if event.type == "preview"]
    assert steps == sorted(set(steps))


def test_a_killed_supervisor_comes_back_and_the_result_is_the_same(
    studio: Installation, undisturbed: str
) -> None:
    job_id = studio.train(photos(), previews=["a photo of <stark> dog"], **PARAMS)
    studio.at_step(job_id, random.randint(5, STEPS - 15), 60)
    studio.until(lambda: studio.job(job_id).checkpoint_step)
    studio.processes[-1].kill()
    studio.processes[-1].wait()
    damage_newest_checkpoint(studio, job_id)
    restart(studio)
    assert trained(studio, job_id) == undisturbed
    assert studio.notes(job_id)[:2] == ["worker_lost", "checkpoint_discarded"]
    assert studio.job(job_id).attempt == 2


def test_pictures_of_the_trained_concept_are_drawn(studio: Installation) -> None:
    job = studio.ended(studio.generate(size=32, num_images=3), 60)
    assert job.state == "succeeded", job.error
    with Image.open(studio.storage.path(studio.images(job.id)[0].storage_key)) as stored:
        assert stored.size == (32, 32)


@pytest.mark.parametrize("studio", [pytest.param("server", marks=pytest.mark.servers)], indirect=True)
def test_f28_a_stopped_training_goes_on_after_the_restart(studio: Installation, undisturbed: str) -> None:
    job_id = studio.train(photos(), previews=["a photo of <stark> dog"], **PARAMS)
    studio.at_step(job_id, 10, 60)
    process = studio.processes[-1]
    process.terminate()
    assert process.wait(30) == 0
    assert (studio.job(job_id).state, studio.job(job_id).attempt) == ("queued", 0)
    restart(studio)
    assert trained(studio, job_id) == undisturbed
    assert "resumed" in studio.notes(job_id)
