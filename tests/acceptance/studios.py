"""Studios as a person starts them: real processes on free ports, in an empty data directory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx

ROOT = Path(__file__).resolve().parent.parent.parent
READY_S = 180.0
STOP_S = 40.0


@dataclass(frozen=True)
class RunningStudio:
    """A studio that answers. ``log`` is everything its processes printed."""

    url: str
    data_dir: Path
    log: Path
    environment: dict[str, str]

    @property
    def api(self) -> str:
        return f"{self.url}/api/v1"


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(data_dir: Path, port: int, **more: str) -> dict[str, str]:
    """The caller's environment without any Moongate setting but these; no calibration, for time's sake."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MOONGATE_")}
    ours = {"MOONGATE_DATA_DIR": str(data_dir), "PORT": str(port), "MOONGATE_CALIBRATE": "false"}
    return {**kept, **ours, "PYTHONUNBUFFERED": "1", **more}


@contextmanager
def started(commands: Sequence[Sequence[str]], studio: RunningStudio) -> Iterator[RunningStudio]:
    """Start the commands, wait for ``/readyz``, and stop them as a container would."""
    with studio.log.open("ab") as log:
        processes = [
            subprocess.Popen(
                command, cwd=ROOT, env=studio.environment, stdout=log, stderr=log, start_new_session=True
            )
            for command in commands
        ]
    try:
        wait_ready(studio, processes)
        yield studio
    finally:
        stop(processes)


def wait_ready(studio: RunningStudio, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        for process in processes:
            assert process.poll() is None, (
                f"exited with {process.returncode}:\n{studio.log.read_text()[-4000:]}"
            )
        try:
            if httpx.get(f"{studio.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready after {READY_S} s:\n{studio.log.read_text()[-4000:]}")


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    try:
        for process in processes:
            process.wait(max(0.1, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def embedded(folder: Path, **more: str) -> RunningStudio:
    """The profile without any service (not yet started)."""
    port = free_port()
    data = folder / "data"
    return RunningStudio(
        f"http://127.0.0.1:{port}", data, folder / "studio.log", environment(data, port, **more)
    )


def server(folder: Path, database_url: str, redis_url: str, **more: str) -> RunningStudio:
    """The profile on Postgres, Redis and Celery (not yet started)."""
    return embedded(folder, MOONGATE_DATABASE_URL=database_url, MOONGATE_REDIS_URL=redis_url, **more)


EMBEDDED_COMMANDS = [[sys.executable, "-m", "backend"]]


def server_commands(studio: RunningStudio) -> list[list[str]]:
    """What ``docs/operations.md`` says to run, after ``make migrate``."""
    port = studio.environment["PORT"]
    return [
        [sys.executable, "-m", "uvicorn", "--factory", "backend.main:create_app", "--port", port],
        [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1"],
    ]


def migrate(studio: RunningStudio) -> None:
    subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env=studio.environment,
        check=True,
        timeout=120,
    )
