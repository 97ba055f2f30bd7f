"""The web process as it really runs: light, quick, without tensors, and gone when it is told to go."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import pytest

from backend.settings import Settings
from backend.studio import Studio
from tests.acceptance.studios import ROOT, environment, free_port
from tests.backend.workshop import Workshop


def test_the_web_process_starts_with_torch_blocked(tmp_path: Path) -> None:
    script = """
        import sys
        for name in ("torch", "diffusers", "transformers", "worker", "celery"):
            sys.modules[name] = None
        from backend.main import create_app
        from fastapi.testclient import TestClient
        with TestClient(create_app(), base_url="http://127.0.0.1") as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/api/v1/methods").json()["items"]
        print("light")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        check=False,
        env=environment(tmp_path, free_port()),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1:] == ["light"], done.stderr


@dataclass(frozen=True)
class Served:
    """A web process alone, its address, and the seconds until it answered."""

    process: subprocess.Popen[bytes]
    url: str
    ready_s: float


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "backend.main:create_app", "--port", str(port)]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(tmp_path, port),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            httpx.get(f"{url}/healthz", timeout=1)
            break
        except httpx.TransportError:
            assert time.monotonic() - started < 60
            time.sleep(0.05)
    yield Served(process, url, time.monotonic() - started)
    if process.poll() is None:
        process.kill()
        process.wait()


def test_it_is_light_and_ends_open_streams_when_told_to_go(served: Served, tmp_path: Path) -> None:
    studio = Studio.open(Settings(data_dir=tmp_path))
    Workshop(studio).open()
    with httpx.Client(base_url=served.url, timeout=10) as client:
        job = client.post("/api/v1/generations", json={"prompt": "a dog"}).json()
        resident = Path(f"/proc/{served.process.pid}/status").read_text()
        assert int(resident.split("VmRSS:")[1].split()[0]) < 200_000
        with client.stream("GET", job["urls"]["events"]) as stream:
            lines = stream.iter_lines()
            assert any(line == "event: state" for line in lines)
            told = time.monotonic()
            served.process.terminate()
            list(lines)
        served.process.wait(timeout=10)
    assert time.monotonic() - told < 4
    studio.close()
