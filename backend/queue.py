"""The doorbell: tells a waiting supervisor that there is work. Best effort; the jobs table is the queue.

A lost, doubled or late ring is harmless, because a supervisor also looks at the table by itself. Embedded: one
datagram on a socket in the data directory. Server: one Celery message, given up after 200 ms. This is the only
file on the web side that knows Celery, and it imports it inside the function that sends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

if TYPE_CHECKING:
    from backend.settings import Settings

_log = structlog.get_logger(__name__)
_SUN_PATH_BYTES = 100
HINT_TASK = "moongate.hint"
QUEUES = ("gen_any", "train_any", "cpu")
"""Names of the queues; a typo fails loudly because none is created on the fly."""


class Hint(NamedTuple):
    """Which job, and which queue it waits in. ``enqueue`` puts it into ``session.info["hints"]``."""

    job_id: str
    queue: str


class Doorbell:
    """``ring`` after the commit. Never raises."""

    def __init__(self, settings: Settings) -> None:
        self._socket_path = doorbell_path(settings.data_dir)
        self._redis_url = settings.redis_url
        self._app: Any = None

    def ring(self, hints: Iterable[Hint]) -> None:
        """Send each hint once; errors are logged and forgotten (the outbox rings again)."""
        for hint in hints:
            try:
                if self._redis_url:
                    self._send_message(hint)
                else:
                    self._send_datagram(hint)
            except Exception as error:  # a broker may fail in any way; acceptance must not
                _log.info("doorbell_unanswered", job=hint.job_id, error=type(error).__name__)

    def _send_datagram(self, hint: Hint) -> None:
        with (
            short_socket_path(self._socket_path) as path,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell,
        ):
            bell.setblocking(False)
            bell.sendto(hint.job_id.encode(), path)

    def _send_message(self, hint: Hint) -> None:
        if self._app is None:
            self._app = sender(self._redis_url)
        self._app.send_task(
            HINT_TASK,
            args=[hint.job_id],
            queue=hint.queue,
            ignore_result=True,
            retry=True,
            retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1},
        )


def broker_settings(redis_url: str) -> dict[str, Any]:
    """What sender and worker must agree on, and what keeps a broker's trouble away from jobs (reliability 2.7)."""
    from kombu import Queue

    return {
        "broker_url": redis_url,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_queues": [Queue(name, routing_key=name) for name in QUEUES],
        "task_create_missing_queues": False,
        "task_default_queue": QUEUES[0],
        "broker_transport_options": {
            "visibility_timeout": 300,
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "retry_on_timeout": True,
            "global_keyprefix": "moongate:",
        },
    }


def sender(redis_url: str) -> Any:
    """A Celery application that only sends, with time limits that a web request can bear."""
    from celery import Celery

    app = Celery("moongate-sender")
    settings = broker_settings(redis_url)
    settings["broker_transport_options"] |= {
        "socket_timeout": 0.2,
        "socket_connect_timeout": 0.2,
        "retry_on_timeout": False,
        "max_retries": 1,
    }
    app.conf.update(settings, broker_connection_timeout=0.2, broker_pool_limit=4)
    return app


def doorbell_path(data_dir: Path) -> Path:
    """The socket of the embedded supervisor."""
    return data_dir.resolve() / "doorbell.sock"


@contextmanager
def short_socket_path(path: Path) -> Iterator[str]:
    """A name for a socket that fits into ``sun_path`` (108 bytes) however deep its folder lies."""
    if len(os.fsencode(path)) <= _SUN_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
