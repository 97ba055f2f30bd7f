"""The disposable child: owns the device, does one job or batch after another, has no database and no credentials.

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
from collections.abc import Callable, Sequence
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
    RunTogether,
    Stopped,
    Succeeded,
)
from worker.pipe_run import Reporter

_log = logging.getLogger("moongate.executor")


class JobFailed(Exception):
    """A handler's verdict; ``str`` is a sentence for a person, ``report`` what was found out before."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        sticky: bool = False,
        report: dict[str, Any] | None = None,
    ) -> None:
        self.code, self.retryable, self.sticky, self.report = code, retryable, sticky, report
        super().__init__(message)


class JobStopped(Exception):
    """The job stopped as it was asked to: ``cancelled`` or ``released``."""


Ended = Callable[[Reporter, "Succeeded | JobStopped"], None]


class Handlers(Protocol):
    """What a handlers module offers."""

    def start(self, config: dict[str, Any]) -> Ready:
        """Prepare the device, describe the bases. Raises anything: the child ends."""

    def handle(self, job: RunJob, reporter: Reporter) -> Succeeded:
        """Do the job. Raises JobFailed, JobStopped, or anything."""

    def handle_together(self, reporters: Sequence[Reporter], ended: Ended) -> None:
        """Do the jobs of several reporters at once. ``ended`` is called once for each that is done, or that stopped as
        it was asked to; those for which it is not called are done alone afterwards. Raises anything.
        """

    def verdict(self, error: BaseException) -> JobFailed:
        """What an unexpected error means."""


class Executor:
    """One pipe, one job at a time or several together."""

    def __init__(self, pipe: socket.socket, handlers: Handlers) -> None:
        self._pipe = pipe
        self._handlers = handlers
        self._write = threading.Lock()
        self._jobs: queue.SimpleQueue[list[Reporter]] = queue.SimpleQueue()
        self._current: dict[tuple[str, int], Reporter] = {}

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
        if isinstance(message, RunJob | RunTogether):
            begun = message.jobs if isinstance(message, RunTogether) else [message]
            self._current = {(job.job, job.fence): Reporter(job, self.send) for job in begun}
            self._jobs.put(list(self._current.values()))
            return
        current = self._current.get((message.job, message.fence))
        if current is None:
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
            reporters = self._jobs.get()
            for reporter in self._do_together(reporters) if len(reporters) > 1 else reporters:
                self.send(self._do(reporter))

    def _do_together(self, reporters: Sequence[Reporter]) -> list[Reporter]:
        """Returns those that are to be done alone, one after another, so that only who is to blame fails."""
        left = list(reporters)

        def ended(reporter: Reporter, outcome: Succeeded | JobStopped) -> None:
            reporter.flush()
            self.send(outcome if isinstance(outcome, Succeeded) else _stopped(reporter, outcome))
            left.remove(reporter)

        try:
            for reporter in reporters:
                reporter.staging.mkdir(parents=True, exist_ok=True)
            self._handlers.handle_together(reporters, ended)
        except Exception as error:
            if (failed := self._verdict(error)).sticky:
                for reporter in left:
                    self.send(_failed(reporter, failed, error))
                return []
            _log.warning("a batch did not come to its end: %s", failed.code, exc_info=error)
        return left

    def _do(self, reporter: Reporter) -> FromExecutor:
        try:
            reporter.staging.mkdir(parents=True, exist_ok=True)
            done = self._handlers.handle(reporter.job, reporter)
            reporter.flush()
            return done
        except JobStopped as stopped:
            reporter.flush()
            return _stopped(reporter, stopped)
        except Exception as error:
            return _failed(reporter, self._verdict(error), error)

    def _verdict(self, error: Exception) -> JobFailed:
        return error if isinstance(error, JobFailed) else self._handlers.verdict(error)


def _stopped(reporter: Reporter, stopped: JobStopped) -> Stopped:
    return Stopped(**reporter.tag, reason="cancelled" if str(stopped) == "cancelled" else "released")


def _failed(reporter: Reporter, failed: JobFailed, error: Exception) -> Failed:
    return Failed(
        **reporter.tag, code=failed.code, retryable=failed.retryable, message=str(failed), sticky=failed.sticky,
        trace="".join(traceback.format_exception(error)), report=failed.report,
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
