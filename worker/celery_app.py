"""The server's doorbell: ``celery -A worker.celery_app worker -P threads -c 1``, one per device.

A hint is acknowledged before it does anything, wakes the supervisor's thread and returns. Results, retries, time
limits, remote control and schedules of Celery are unused: the rows do all that (reliability 2.7).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import structlog
from celery import Celery
from celery.signals import setup_logging, worker_ready, worker_shutdown, worker_shutting_down

from backend import logs
from backend.maintenance import Maintenance
from backend.queue import HINT_TASK, broker_settings
from backend.settings import Settings
from worker import broker
from worker.supervisor import STUDIO, Supervisor, Trade

_log = structlog.get_logger(__name__)
STOP_S = 30.0
trade: Trade = STUDIO
"""What this worker's executors can do; a drill worker puts another here before it starts."""

_settings = Settings()
app = Celery("moongate")
app.conf.update(
    broker_settings(_settings.redis_url or "memory://"),
    result_backend=None,
    worker_pool="threads",
    worker_concurrency=1,
    task_acks_late=False,
    task_reject_on_worker_lost=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    broker_connection_retry=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
)
broker.install(app)


class Slot:
    """The supervisor of this Celery worker, in its own long-lived thread."""

    def __init__(self, settings: Settings, trade: Trade) -> None:
        settings.work_dir.mkdir(parents=True, exist_ok=True)
        self.supervisor = Supervisor(settings, trade)
        self.maintenance = Maintenance.of(settings)
        self.thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def _run(self) -> None:
        try:
            self.supervisor.run()
        except BaseException:
            _log.exception("supervisor_ended")
            os.kill(
                os.getpid(), signal.SIGTERM
            )  # a worker without its supervisor serves nobody: start afresh

    def start(self) -> None:
        self.maintenance.start()
        self.thread.start()

    def stop(self) -> None:
        """Wait until the job is given back."""
        self.supervisor.stop()
        self.thread.join(STOP_S)
        self.maintenance.stop()


_slots: list[Slot] = []


def _hint(*job: object, **_: object) -> None:
    """There may be work. Whose is not even read: the slot takes the best job, whatever was rung for."""
    for slot in _slots:
        slot.supervisor.wake()


def _configure_logging(**_: Any) -> None:
    logs.configure(_settings)
    for noisy in ("celery.worker.strategy", "celery.app.trace"):  # two lines a hint
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _begin(**_: Any) -> None:
    slot = Slot(_settings, trade)
    _slots.append(slot)
    slot.start()


def _end_soon(**_: Any) -> None:
    for slot in _slots:
        slot.supervisor.stop()


def _end(**_: Any) -> None:
    for slot in _slots:
        slot.stop()


hint = app.task(name=HINT_TASK, ignore_result=True)(_hint)
setup_logging.connect(_configure_logging)
worker_ready.connect(_begin)
worker_shutting_down.connect(_end_soon)
worker_shutdown.connect(_end)
