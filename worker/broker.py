"""Redis as a doorbell that strangers may press: what is not a message is dropped, instead of ending the consumer."""

from __future__ import annotations

from queue import Empty
from typing import Any

import kombu.transport
import structlog
from celery.apps.worker import Worker
from kombu.transport import redis

_log = structlog.get_logger(__name__)


class PatientChannel(redis.Channel):  # type: ignore[misc]
    """A list item that cannot be read as a message is logged and forgotten; the table knows all jobs anyway."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            _log.warning("message_dropped", error=type(error).__name__)
            raise Empty from error


class PatientTransport(redis.Transport):  # type: ignore[misc]
    """kombu's Redis transport with patient channels."""

    Channel = PatientChannel


class QuietWorker(Worker):  # type: ignore[misc]
    """A worker that talks to no other: life is told by rows, so gossip, mingling and heartbeats are only traffic."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **{**options, "without_mingle": True, "without_gossip": True, "without_heartbeat": True}
        )


def install(app: Any) -> None:
    """Use both in this process."""
    for scheme in ("redis", "rediss"):
        kombu.transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:PatientTransport"
    app.Worker = app.subclass_with_self(QuietWorker, name="Worker")
