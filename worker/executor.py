"""The disposable child: owns the device, does one job after another, has no database and no credentials.

A thread reads requests from the pipe; when the pipe ends, so does this process, at once and with its whole group.
The main thread computes. What kinds of jobs there are, and how bases are described, is the handlers module's
business, so that this file is plumbing only.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import signal
import socket
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn, Protocol

from backend.schemas.executor import (
    TO_EXECUTOR,
    CancelJob,
    Failed,
    FinishJob,
    FromExecutor,
    Ready,
    ReleaseJob,
    RenewLease,
    RunJob,
    Stopped,
    Succeeded,
)
from worker.pipe_run import Reporter


class JobFailed(Exception):
    """A handler's verdict; ``str`` is a sentence for a person."""

    def __init__(self, code: str, message: str, *, retryable: bool = False, sticky: bool = False) -> None:
        self.code, self.retryable, self.sticky = code, retryable, sticky
        super().__init__(message)


class JobStopped(Exception):
    """The job stopped as it was asked to: ``cancelled`` or ``released``."""


class Handlers(Protocol):
    """What a handlers module offers."""

    def start(self, config: dict[str, Any]) -> Ready:
        """Prepare the device, describe the bases. Raises anything: the child ends."""

    def handle(self, job: RunJob, reporter: Reporter) -> Succeeded:
        """Do the job. Raises JobFailed, JobStopped, or anything."""

    def verdict(self, error: BaseException) -> JobFailed:
        """What an unexpected error means."""


class Executor:
    """One pipe, one current job."""

    def __init__(self, pipe: socket.socket, handlers: Handlers) -> None:
        self._pipe = pipe
        self._handlers = handlers
        self._write = threading.Lock()
        self._jobs: queue.SimpleQueue[RunJob] = queue.SimpleQueue()
        self._current: Reporter | None = None

    def send(self, message: FromExecutor) -> None:
        """One line, whole."""
        with self._write:
            self._pipe.sendall(message.model_dump_json().encode() + b"\n")

    def read(self) -> None:
        """The reading thread."""
        try:
            with self._pipe.makefile("rb") as lines:
                for line in lines:
                    self._receive(line)
        except OSError:
            pass
        _end_group()

    def _receive(self, line: bytes) -> None:
        message = TO_EXECUTOR.validate_json(line)
        if isinstance(message, RunJob):
            self._current = Reporter(message, self.send)
            self._jobs.put(message)
            return
        current = self._current
        if current is None or (current.job.job, current.job.fence) != (message.job, message.fence):
            return  # of an attempt that is over
        match message:
            case CancelJob():
                current.ask("cancel")
            case FinishJob():
                current.ask("finish")
            case ReleaseJob():
                current.ask("release")
            case RenewLease():
                current.renew()

    def serve(self) -> NoReturn:
        """Job after job, for ever."""
        while True:
            job = self._jobs.get()
            reporter = self._current
            assert reporter is not None
            self.send(self._do(job, reporter))

    def _do(self, job: RunJob, reporter: Reporter) -> FromExecutor:
        try:
            Path(job.staging).mkdir(parents=True, exist_ok=True)
            done = self._handlers.handle(job, reporter)
            reporter.flush()
            return done
        except JobStopped as stopped:
            reporter.flush()
            reason = "cancelled" if str(stopped) == "cancelled" else "released"
            return Stopped(**reporter.tag, reason=reason)
        except Exception as error:
            failed = error if isinstance(error, JobFailed) else self._handlers.verdict(error)
            return Failed(
                **reporter.tag, code=failed.code, retryable=failed.retryable, message=str(failed), sticky=failed.sticky,
                trace="".join(traceback.format_exception(error)),
            )  # fmt: skip


def main(descriptor: int, config: dict[str, Any]) -> int:
    """Entry of the forked child. ``config``: ``handlers`` (module name) and what that module's ``start`` reads."""
    pipe = socket.socket(fileno=descriptor)
    logging.basicConfig(level=logging.WARNING)
    handlers: Handlers = importlib.import_module(config["handlers"]).handlers()
    executor = Executor(pipe, handlers)
    threading.Thread(target=executor.read, name="pipe", daemon=True).start()
    executor.send(handlers.start(config))
    executor.serve()


def _end_group() -> NoReturn:
    os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
