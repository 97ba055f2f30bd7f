"""A process that imports the heavy libraries once and forks executors from then on, 0.03 s each instead of 9 s.

It never runs a tensor operation nor touches a device, so its children may (a fork after either hangs or fails). Its
environment holds no setting of the studio. It talks packets of JSON on the socket whose number is its first argument:

    <- {"preloaded": seconds}               once
    -> {"spawn": {...}} with one descriptor  the config and the pipe of ``worker.executor``
    <- {"started": pid}
    -> {"kill": pid, "signal": n}            ignored once the child is gone
    <- {"exited": pid, "status": n}          negative: killed by that signal
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from worker.orphan_guard import die_with_parent

PACKET_BYTES = 1 << 16
_OOM_SCORE = "500"  # the kernel takes the executor first, so that the supervisor lives to tell


def main(arguments: list[str]) -> NoReturn:
    """``forkserver <socket> <parent> <module>...``"""
    control = socket.socket(fileno=int(arguments[0]))
    die_with_parent(int(arguments[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started = time.monotonic()
    for module in arguments[2:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    _send(control, {"preloaded": round(time.monotonic() - started, 3)})
    _serve(control)
    sys.exit(0)


def _serve(control: socket.socket) -> None:
    wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    alive: set[int] = set()
    while True:
        ready = select.select([control.fileno(), wake_r], [], [])[0]
        if wake_r in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_r, 4096)
        for pid in list(alive):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                alive.discard(pid)
                _send(control, {"exited": pid, "status": os.waitstatus_to_exitcode(status)})
        if control.fileno() in ready:
            packet, descriptors, _, _ = socket.recv_fds(control, PACKET_BYTES, 1)
            if not packet:
                break
            request = json.loads(packet)
            if "spawn" in request:
                pid = _fork(request["spawn"], descriptors[0], close=[control.fileno(), wake_r, wake_w])
                alive.add(pid)
                _send(control, {"started": pid})
            elif request["kill"] in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(request["kill"], request["signal"])
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _fork(config: dict[str, Any], pipe: int, close: list[int]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # either side may be first; both want the group to exist
            os.setpgid(pid, pid)
        os.close(pipe)
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        die_with_parent(parent)
        for descriptor in close:
            os.close(descriptor)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write(_OOM_SCORE)
        from worker import executor

        status = executor.main(pipe, config)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    try:
        control.send(json.dumps(message).encode())
    except OSError:
        os._exit(0)  # nobody is listening any more


if __name__ == "__main__":
    main(sys.argv[1:])
