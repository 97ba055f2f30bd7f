"""F16: the connection is lost while a COMMIT is under way, and the server has made it. Nothing is done twice."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from backend.models import Image, Job
from backend.studio import Studio
from tests.backend.conftest import app, client, settings, studio, workshop
from tests.backend.workshop import Workshop
from tests.faults.cut_wire import CutWire
from tests.faults.test_crashes import succeeded_once
from tests.servers import Servers
from tests.worker.installation import installation

__all__ = ["app", "client", "settings", "studio", "workshop"]
pytestmark = pytest.mark.servers


@pytest.fixture
def wire(servers: Servers) -> Iterator[CutWire]:
    folder = Path(tempfile.mkdtemp(prefix="moongate-wire-"))  # the names of sockets are short
    wire = CutWire(folder, servers.fresh_database())
    yield wire
    wire.close()
    shutil.rmtree(folder)


@pytest.fixture
def database_url(wire: CutWire) -> str:
    return wire.url


@pytest.mark.parametrize(("kind", "marker"), [("train", b"succeeded"), ("generate", b"INSERT INTO images")])
def test_f16_a_result_whose_commit_is_not_answered_is_published_once(
    tmp_path: Path, wire: CutWire, kind: str, marker: bytes
) -> None:
    with installation(tmp_path, database_url=wire.url, lease_s=30.0) as installed:
        installed.start()
        wire.arm(marker)
        job_id = installed.train(steps=3) if kind == "train" else installed.generate(num_images=3)
        succeeded_once(installed, job_id, 3)
        assert wire.cuts == 1
        installed.until(lambda: "job_ended" in installed.log())  # the worker has asked again, and knows
        assert installed.job(job_id).attempt == 1
        keys = [row.storage_key for row in installed.weights_of(job_id)]
        if kind == "generate":
            assert len(installed.images(job_id)) == 3
            shown = [event.type for event in installed.events(job_id)].count("image")
            assert shown == 3
            keys += [key for row in installed.images(job_id) for key in (row.storage_key, row.thumbnail_key)]
        assert set(keys) <= set(installed.storage.keys())  # the file was not taken back


def test_f16_an_acceptance_whose_commit_is_not_answered_is_one_job(
    client: TestClient, workshop: Workshop, studio: Studio, wire: CutWire
) -> None:
    def post() -> tuple[int, str | None]:
        body, key = {"prompt": "a dog", "num_images": 1}, {"idempotency-key": "k"}
        answer = client.post("/api/v1/generations", json=body, headers=key)
        return answer.status_code, answer.json().get("id")

    wire.arm(b"INSERT INTO jobs")
    assert post() == (503, None)
    assert wire.cuts == 1
    with studio.reading() as session:
        [job] = session.query(Job)
        assert session.query(Image).count() == 0
    assert post() == (202, job.id)
    assert post() == (202, job.id)
    with studio.reading() as session:
        assert session.query(Job).count() == 1
