"""The launcher: starts both, says where, restarts what dies, ends both at once, and refuses what would go wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.__main__ import address, commands, port_is_free, ready
from backend.settings import Settings
from tests.acceptance.studios import ROOT, environment, free_port
from tests.faults.test_crashes import alive, descendants


class Launched:
    """A launcher process and what it printed."""

    def __init__(self, folder: Path, port: int, **more: str) -> None:
        self.log = folder / f"launcher-{port}.log"
        empty = folder / "none"
        empty.mkdir(exist_ok=True)
        told = environment(folder / "data", port, MOONGATE_SHIPPED_BASE_MODELS=str(empty), **more)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "backend"],
                cwd=ROOT,
                env=told,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self, sentence: str, within_s: float = 40) -> None:
        deadline = time.monotonic() + within_s
        while sentence not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None or sentence in self.log.read_text(), self.log.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    launched = Launched(tmp_path_factory.mktemp("launcher"), free_port())
    try:
        yield launched
    finally:
        if launched.process.poll() is None:
            launched.process.kill()


def children(launched: Launched) -> dict[str, int]:
    found = {}
    for pid in descendants(launched.process.pid):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended since it was listed
        if "uvicorn" in line:
            found["web"] = pid
        elif line[1:3] == ["-m", "worker"]:
            found["supervisor"] = pid
    return found


def test_it_says_where_the_studio_is_once_it_is_ready(launched: Launched) -> None:
    port = launched.log.name.removeprefix("launcher-").removesuffix(".log")
    launched.said(f"Moongate is ready: http://127.0.0.1:{port}\n")
    assert ready(f"http://127.0.0.1:{port}")
    assert set(children(launched)) == {"web", "supervisor"}


def test_a_second_studio_of_the_data_directory_is_refused(launched: Launched, tmp_path: Path) -> None:
    second = Launched(launched.log.parent, free_port())
    assert second.process.wait(20) == 3
    assert "Another studio is using" in second.log.read_text()


def test_a_taken_port_is_refused_with_a_way_out(launched: Launched, tmp_path: Path) -> None:
    port = int(launched.log.name.removeprefix("launcher-").removesuffix(".log"))
    assert not port_is_free("127.0.0.1", port)
    second = Launched(tmp_path, port)
    assert second.process.wait(20) == 4
    assert f"PORT={port + 1}" in second.log.read_text()


def test_a_public_address_without_accounts_is_refused(tmp_path: Path) -> None:
    refused = Launched(tmp_path, free_port(), MOONGATE_HOST="0.0.0.0")
    assert refused.process.wait(20) == 2
    assert "Traceback" not in refused.log.read_text()


@pytest.mark.parametrize("name", ["supervisor", "web"])
def test_what_dies_is_started_again(launched: Launched, name: str) -> None:
    launched.said("Moongate is ready")
    before = children(launched)
    os.kill(before[name], signal.SIGKILL)
    deadline = time.monotonic() + 20
    while children(launched).get(name) in (None, before[name]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_ends_everything_within_seconds(launched: Launched) -> None:
    launched.said("Moongate is ready")
    everything = descendants(launched.process.pid)
    assert len(everything) >= 2
    asked = time.monotonic()
    launched.process.send_signal(signal.SIGINT)
    assert launched.process.wait(20) == 0
    assert time.monotonic() - asked < 8
    assert not any(alive(pid) for pid in everything)


def test_the_settings_decide_what_runs(tmp_path: Path) -> None:
    embedded = Settings(data_dir=tmp_path)
    server = Settings(data_dir=tmp_path, redis_url="redis://localhost/0", host="::1", port=1)
    assert commands(embedded)["supervisor"][1:] == ["-m", "worker"]
    assert "celery" in commands(server)["supervisor"]
    assert address(server) == "http://[::1]:1"
    assert address(Settings(data_dir=tmp_path, host="0.0.0.0", port=80)) == "http://127.0.0.1:80"
