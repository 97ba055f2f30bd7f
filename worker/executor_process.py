"""The supervisor's handle on its executor: start it, talk to it, notice its death, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from backend.schemas.executor import FROM_EXECUTOR, FromExecutor, ToExecutor
from worker.forkserver import PACKET_BYTES

_log = structlog.get_logger(__name__)
_BACK_OFF_S, _LONGEST_BACK_OFF_S = 0.5, 30.0
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
                   "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "PYTHONPATH",
                   "COVERAGE_PROCESS_START", "MOONGATE_FAILPOINTS")  # fmt: skip


@dataclass(frozen=True)
class Died:
    """The executor is gone. ``status``: exit code, negative for a signal; None when its parent went with it."""

    status: int | None

    @property
    def words(self) -> str:
        if self.status is None:
            return "it vanished"
        if self.status < 0:
            return f"it was killed by signal {-self.status}"
        return f"it exited with status {self.status}"


def executor_environment(threads: int) -> dict[str, str]:
    """What the executor may know: no setting and no credential of the studio, no network for model libraries."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    quiet = {
        "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    return kept | quiet


class ExecutorProcess:
    """One executor at a time, taken from a forkserver that is started when needed.

    ``poll`` never blocks. All calls come from one long-lived thread, because the kernel ties the death of the
    forkserver to the thread that started it.
    """

    def __init__(self, config: Mapping[str, Any], preload: Sequence[str], threads: int) -> None:
        self._config = dict(config)
        self._preload = list(preload)
        self._environment = executor_environment(threads)
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._pipe: socket.socket | None = None
        self._buffer = b""
        self._spawning = False
        self._failures = 0
        self._not_before = 0.0
        self._sick = False
        self.pid: int | None = None

    @property
    def descriptors(self) -> list[int]:
        """To wait on."""
        return [end.fileno() for end in (self._control, self._pipe) if end is not None]

    def healthy(self) -> None:
        """The executor did what it was started for: the next start need not wait."""
        self._failures = 0

    def ensure(self) -> None:
        """Start what is missing, with back-off after failures."""
        if self._pipe is not None or time.monotonic() < self._not_before:
            return
        try:
            if self._control is None:
                self._start_server()
            self._spawn()
        except OSError as error:
            _log.warning("executor_not_started", error=type(error).__name__)
            self._server_lost()

    def _start_server(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "worker.forkserver", str(theirs.fileno()), str(os.getpid())]
            self._server = subprocess.Popen(
                [*command, *self._preload], env=self._environment, pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self._control = ours

    def _spawn(self) -> None:
        assert self._control is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            socket.send_fds(self._control, [json.dumps({"spawn": self._config}).encode()], [theirs.fileno()])
        self._pipe, self._buffer, self._spawning = ours, b"", True

    def send(self, message: ToExecutor) -> None:
        """Write one line; a broken pipe is noticed by the next ``poll``."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.sendall(message.model_dump_json().encode() + b"\n")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the executor's whole process group."""
        if self._control is not None and self.pid is not None:
            with contextlib.suppress(OSError):
                self._control.send(json.dumps({"kill": self.pid, "signal": int(number)}).encode())

    def poll(self) -> list[FromExecutor | Died]:
        """Everything that arrived; ``Died`` is the last word of an executor."""
        found: list[FromExecutor | Died] = self._read_lines()
        while self._control is not None and _readable(self._control):
            packet = self._control.recv(PACKET_BYTES)
            if not packet:
                found += self._server_lost()
                break
            message = json.loads(packet)
            if "preloaded" in message:
                _log.info("executor_preloaded", seconds=message["preloaded"])
            elif "started" in message:
                self.pid, self._spawning = message["started"], False
            elif message["exited"] == self.pid:
                found += self._read_lines()
                found += self._gone(message["status"])
        return found

    def _read_lines(self) -> list[FromExecutor | Died]:
        while self._pipe is not None and _readable(self._pipe):
            try:
                part = self._pipe.recv(1 << 16)
            except OSError:
                part = b""
            if not part:
                break
            self._buffer += part
        *lines, self._buffer = self._buffer.split(b"\n")
        return [FROM_EXECUTOR.validate_json(line) for line in lines]

    def _gone(self, status: int | None) -> list[FromExecutor | Died]:
        was_there = self._pipe is not None
        if self._pipe is not None:
            self._pipe.close()
        self._pipe, self.pid, self._spawning = None, None, False
        if self._failures:
            self._not_before = time.monotonic() + min(_BACK_OFF_S * 2**self._failures, _LONGEST_BACK_OFF_S)
        self._failures += 1
        return [Died(status)] if was_there else []

    def _server_lost(self) -> list[FromExecutor | Died]:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None
        return self._gone(None)

    def rss_bytes(self) -> int:
        """Memory the executor holds; 0 when there is none, or where the system does not say."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """End everything now."""
        self.kill()
        self._server_lost()


def _readable(end: socket.socket) -> bool:
    return bool(select.select([end], [], [], 0)[0])
