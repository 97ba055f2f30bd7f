"""F17 and F18: a full disk. What was accepted stays, what cannot be stored is refused, nothing is half visible."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import event, text

from backend.models import Job
from backend.studio import Studio
from tests.backend.conftest import Api, app, client, database_url, settings, studio, workshop
from tests.backend.pictures import encoded, photo
from tests.backend.workshop import Workshop
from tests.faults.test_crashes import descendants
from tests.faults.test_web_killed import web
from tests.worker.installation import Installation, installation

__all__ = ["app", "client", "database_url", "settings", "studio", "workshop"]
FULL_AT_BYTES = 1_500_000


@contextmanager
def nothing_larger_than(limit: int, pid: int) -> Iterator[None]:
    """The kernel refuses to let a process write larger files, as it does on a full disk."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("place", ["received", "decoded"])
def test_f17_a_photo_that_does_not_fit_is_507_and_leaves_nothing(tmp_path: Path, place: str) -> None:
    noise = encoded(Image.effect_noise((900, 900), 90).convert("RGB"), "PNG", compress_level=0)
    assert len(noise) > FULL_AT_BYTES
    storage = tmp_path / "data" / "storage"
    with web(tmp_path) as (process, client):
        concept = client.post("/api/v1/concepts", json={"name": "Stark", "class_noun": "dog"}).json()["id"]
        url = f"/api/v1/concepts/{concept}/photos"
        assert client.post(url, files=[("files", ("a.jpg", photo(1)))]).status_code == 201
        [darkroom] = descendants(process.pid)
        limit, pid = (FULL_AT_BYTES, process.pid) if place == "received" else (5000, darkroom)
        with nothing_larger_than(limit, pid):
            answer = client.post(url, files=[("files", ("b.png", noise))])
        assert (answer.status_code, answer.json()["code"]) == (507, "storage-full"), answer.text
        assert len(client.get(url).json()["items"]) == 1
        assert list((storage / "staging").iterdir()) == []
        assert client.post(url, files=[("files", ("b.png", noise))]).status_code == 201


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installation]:
    with installation(tmp_path) as installed:
        yield installed


@pytest.mark.parametrize("kind", ["train", "generate"])
def test_f17_a_result_that_cannot_be_stored_is_not_visible_and_tried_again(
    installed: Installation, kind: str
) -> None:
    once = installed.folder / "once"
    once.touch()
    installed.start(MOONGATE_FAILPOINTS=f"storage.adopt=full:{once}")
    job_id = installed.train(steps=3) if kind == "train" else installed.generate(num_images=2)
    installed.until(lambda: "storage_full" in installed.notes(job_id))
    job = installed.job(job_id)
    assert job.state == "queued"
    assert (installed.weights_of(job_id), job.result) == ([], None)
    assert list((installed.storage.root / "staging").iterdir()) == []
    job = installed.ended(job_id, 40)
    assert (job.state, job.attempt) == ("succeeded", 2), job.error
    if kind == "generate":
        assert [image.index for image in installed.images(job_id)] == [0, 1]


def test_f17_a_result_that_can_never_be_stored_ends_the_job_with_a_hint(tmp_path: Path) -> None:
    with installation(tmp_path, max_attempts=1) as installed:
        installed.start(MOONGATE_FAILPOINTS="storage.adopt=full")
        job = installed.ended(installed.train(steps=3))
        assert job.error is not None
        assert (job.state, job.error["code"], job.error["retryable"]) == ("failed", "storage_full", True)
        assert installed.weights_of(job.id) == []
        assert list(installed.storage.keys()) == []


# ---- F18: the database's own disk


def full(studio: Studio) -> None:
    """From now on the SQLite file may not grow."""

    def hold(connection: Any, _record: Any = None) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")

    event.listen(studio.database.engine, "connect", hold)
    studio.database.engine.dispose()


def roomy(studio: Studio) -> None:
    event.listen(
        studio.database.engine, "connect", lambda held, _: held.execute("PRAGMA max_page_count=1000000")
    )
    studio.database.engine.dispose()


def test_f18_a_full_database_is_503_and_health_is_red_until_it_has_room(
    client: TestClient, workshop: Workshop, studio: Studio
) -> None:
    api = Api(client)
    api.generate("a dog")
    assert client.get("/readyz").status_code == 200
    full(studio)
    accepted, answers = 1, list[httpx.Response]()
    deadline = time.monotonic() + 60
    while not answers:
        assert time.monotonic() < deadline
        answer = client.post("/api/v1/generations", json={"prompt": "a dog " * 5})
        if answer.status_code == 202:  # it fits into pages that are there
            accepted += 1
        else:
            answers.append(answer)
    assert answers[0].status_code == 503, answers[0].text
    assert answers[0].headers["retry-after"]
    red = client.get("/readyz")
    assert (red.status_code, red.json()["reasons"]["database"]) == (503, "the database cannot be written")
    assert client.get("/api/v1/jobs").status_code == 200  # what is there can be read
    with studio.reading() as session:
        assert session.query(Job).count() == accepted
        orphans = "SELECT count(*) FROM job_events WHERE job_id NOT IN (SELECT id FROM jobs)"
        assert session.scalar(text(orphans)) == 0
        without = "SELECT count(*) FROM jobs WHERE id NOT IN (SELECT job_id FROM job_events)"
        assert session.scalar(text(without)) == 0
    roomy(studio)
    assert "database" not in client.get("/readyz").json().get("reasons", {})
    api.generate("a dog")
