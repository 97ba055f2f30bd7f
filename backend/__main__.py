"""The launcher behind ``make run``: one web process and one supervisor, restarted when they die, ended together.

Exit status 0 after Ctrl-C or SIGTERM, 2 for settings that are unsafe, 3 when another studio uses the data directory,
4 when the port is taken.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import structlog

from backend import logs, migrate
from backend.auth import check_bind
from backend.settings import Settings

_log = structlog.get_logger("launcher")
_PR_SET_PDEATHSIG = 1
FIRST_PAUSE_S, LONGEST_PAUSE_S, HEALTHY_S = 0.5, 30.0, 60.0
DRAIN_S = 35.0
READY_EVERY_S = 0.25


class Child:
    """One process that shall run until the studio ends."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._failures = 0

    def tend(self) -> None:
        """Start it when it is due; notice when it has died."""
        at = time.monotonic()
        if self._process is None:
            if at >= self._start_at:
                self._start(at)
            return
        status = self._process.poll()
        if status is None:
            return
        self._failures = 0 if at - self._started_at > HEALTHY_S else self._failures + 1
        pause = min(FIRST_PAUSE_S * 2 ** max(self._failures - 1, 0), LONGEST_PAUSE_S)
        _log.warning("child_died", name=self.name, status=status, restart_in_s=pause)
        self._process, self._start_at = None, at + pause

    def _start(self, at: float) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_launcher,  # noqa: PLW1509 (the launcher has one thread)
        )
        self._started_at = at

    def terminate(self) -> None:
        """Ask it to end in order."""
        self._signal(signal.SIGTERM)

    def gone(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_launcher() -> None:
    """In the child: be told to end when the launcher dies, however it dies."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def commands(settings: Settings) -> dict[str, list[str]]:
    """What runs: the web process, and the supervisor with the doorbell that the settings name."""
    python = [sys.executable, "-m"]
    web = [*python, "uvicorn", "--factory", "backend.main:create_app", "--host", settings.host,
           "--port", str(settings.port), "--no-access-log", "--timeout-graceful-shutdown", "5",
           "--no-server-header"]  # fmt: skip
    celery = [
        *python,
        "celery",
        "-A",
        "worker.celery_app",
        "worker",
        "-P",
        "threads",
        "-c",
        "1",
        "-l",
        "WARNING",
    ]
    return {"web": web, "supervisor": celery if settings.redis_url else [*python, "worker"]}


def address(settings: Settings) -> str:
    """Where a browser on this machine finds the studio."""
    everywhere = settings.host in ("0.0.0.0", "::")  # noqa: S104
    host = "127.0.0.1" if everywhere else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def lock_data_dir(data_dir: Path) -> int | None:
    """The descriptor of the lock that makes this the only studio of the directory; None when there is another."""
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_dir / "studio.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def port_is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def ready(url: str) -> bool:
    """Whether the studio says so."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main() -> int:
    """Run until told to stop."""
    settings = Settings()
    logs.configure(settings)
    try:
        check_bind(settings)
    except ValueError as error:
        return _refuse(str(error), 2)
    lock = lock_data_dir(settings.data_dir)
    if lock is None:
        return _refuse(f"Another studio is using {settings.data_dir}. Stop it, or set MOONGATE_DATA_DIR.", 3)
    if not port_is_free(settings.host, settings.port):
        return _refuse(f"Port {settings.port} is taken. Choose another: PORT={settings.port + 1} make run", 4)
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: stopping.append(received))
    migrate.upgrade(settings)
    children = [Child(name, command) for name, command in commands(settings).items()]
    try:
        _serve(children, address(settings), stopping)
    finally:
        _drain(children)
        os.close(lock)
    return 0


def _serve(children: list[Child], url: str, stopping: list[int]) -> None:
    announced, look_at = False, 0.0
    while not stopping:
        for child in children:
            child.tend()
        if not announced and time.monotonic() >= look_at:
            announced, look_at = ready(url), time.monotonic() + READY_EVERY_S
            if announced:
                print(f"Moongate is ready: {url}", flush=True)  # noqa: T201
        time.sleep(0.1)


def _drain(children: list[Child]) -> None:
    """A running job is checkpointed and given back, so nothing is lost; the patience has an end."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + DRAIN_S
    while time.monotonic() < deadline and not all(child.gone() for child in children):
        time.sleep(0.05)
    for child in children:
        child.kill()


def _refuse(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)  # noqa: T201
    return status


if __name__ == "__main__":
    sys.exit(main())
