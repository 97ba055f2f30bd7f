"""The web process dies while it accepts something: the client asks again, and nothing is doubled or left half done."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from backend.settings import Settings
from backend.studio import Studio
from tests.acceptance.studios import ROOT, environment, free_port
from tests.backend.pictures import photo
from tests.backend.workshop import Workshop

READY_S = 60.0


@contextmanager
def web(folder: Path, failpoints: str = "") -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A web process that answers, and a client of it."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "backend.main:create_app", "--port", str(port)]
    told = environment(folder / "data", port, MOONGATE_LOW_WATER_BYTES="0", MOONGATE_FAILPOINTS=failpoints)
    process = subprocess.Popen(
        command, cwd=ROOT, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    started = time.monotonic()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while True:
                try:
                    client.get("/healthz")
                    break
                except httpx.TransportError:
                    assert time.monotonic() - started < READY_S
                    time.sleep(0.05)
            yield process, client
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "data" / "storage"


def test_f9_killed_between_commit_and_answer_the_same_key_gets_the_same_job(tmp_path: Path) -> None:
    once = tmp_path / "once"
    body, key = {"prompt": "a dog", "num_images": 1}, {"idempotency-key": "k"}
    with web(tmp_path, f"accept.after_commit=kill:{once}") as (process, client):
        studio = Studio.open(Settings(data_dir=tmp_path / "data"))
        Workshop(studio).open()
        once.touch()
        with pytest.raises(httpx.TransportError):
            client.post("/api/v1/generations", json=body, headers=key)
        assert process.wait(10) == -signal.SIGKILL
    with web(tmp_path) as (_, client):
        answers = [client.post("/api/v1/generations", json=body, headers=key) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        listed = client.get("/api/v1/jobs").json()["items"]
        assert [job["id"] for job in listed] == [answers[0].json()["id"]] == [answers[1].json()["id"]]
        assert listed[0]["state"] == "queued"
    studio.close()


def test_f10_killed_while_half_of_a_body_is_sent(tmp_path: Path, storage: Path) -> None:
    with web(tmp_path) as (process, client):
        concept = client.post("/api/v1/concepts", json={"name": "Stark", "class_noun": "dog"}).json()["id"]
        content = photo(1)
        head = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as raw:
            raw.sendall(
                f"POST /api/v1/concepts/{concept}/photos HTTP/1.1\r\nhost: 127.0.0.1\r\n"
                "content-type: multipart/form-data; boundary=x\r\n"
                f"content-length: {len(content) + 200}\r\n\r\n".encode()
                + head
                + content[: len(content) // 2]
            )
            time.sleep(0.5)
            process.kill()
            process.wait()
    with web(tmp_path) as (_, client):
        assert client.get(f"/api/v1/concepts/{concept}/photos").json()["items"] == []
        assert list((storage / "staging").iterdir()) == []
        assert [path for path in (storage / "objects").rglob("*") if path.is_file()] == []


def test_f10_killed_while_photos_are_staged_the_next_start_removes_them(
    tmp_path: Path, storage: Path
) -> None:
    once = tmp_path / "once"
    with web(tmp_path, f"storage.adopt=kill:{once}") as (process, client):
        concept = client.post("/api/v1/concepts", json={"name": "Stark", "class_noun": "dog"}).json()["id"]
        url = f"/api/v1/concepts/{concept}/photos"
        files = [("files", (f"{seed}.jpg", photo(seed))) for seed in range(2)]
        once.touch()
        with pytest.raises(httpx.TransportError):
            client.post(url, files=files)
        assert process.wait(10) == -signal.SIGKILL
        assert len(list((storage / "staging").iterdir())) == 4  # two photos, two thumbnails
    with web(tmp_path) as (_, client):
        assert list((storage / "staging").iterdir()) == []
        assert client.get(url).json()["items"] == []
        assert client.post(url, files=files).status_code == 201
