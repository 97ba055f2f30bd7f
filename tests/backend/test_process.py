"""The web process as it really runs: light, quick, without tensors, and gone when it is told to go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.acceptance.studios import ROOT, environment, free_port


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
        env=environment(tmp_path, free_port()),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1:] == ["light"], done.stderr


@pytest.fixture
def served(tmp_path: Path) -> tuple[subprocess.Popen[bytes], str, float]:
    """A web process alone, its address, and the seconds until it answered."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "backend.main:create_app", "--port", str(port)]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path, port), stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            httpx.get(f"{url}/healthz", timeout=1)
            break
        except httpx.TransportError:
            assert time.monotonic() - started < 60
            time.sleep(0.05)
    yield process, url, time.monotonic() - started  # type: ignore[misc]
    if process.poll() is None:
        process.kill()
        process.wait()


def test_it_is_light_and_ends_open_streams_at_once(
    served: tuple[subprocess.Popen[bytes], str, float],
) -> None:
    process, url, _ = served
    resident_kb = int(
        next(
            line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmRSS" in line
        ).split()[1]
    )
    assert resident_kb < 200_000
    told = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.wait(timeout=10)
    assert time.monotonic() - told < 8
