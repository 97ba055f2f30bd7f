"""Event streams: replay, end, bounds, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, MutableMapping
from contextlib import nullcontext
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import delete

from backend.api.events import _EventStream
from backend.errors import TooMany
from backend.events import RING, STREAMS_PER_OWNER, Hub
from backend.models import LOCAL_OWNER, JobEvent
from backend.schemas.executor import Unit
from backend.services import jobs, leases
from backend.services.job_events import Event
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop


def parsed(text: str) -> list[tuple[str, dict[str, Any], str]]:
    """(type, data, id) of every event of a stream."""
    found = re.findall(r"^event: (\w+)\ndata: (.*)\nid: (\S+)$", text, re.M)
    return [(kind, json.loads(data), event_id) for kind, data, event_id in found]


def test_replay_from_any_id_and_204_at_the_end(client: TestClient, api: Api, workshop: Workshop) -> None:
    job = api.generate("a dog", num_images=2)
    workshop.draw()
    url = job["urls"]["events"]
    whole = parsed(client.get(url).text)
    assert [kind for kind, _, _ in whole].count("image") == 2
    assert whole[-1][:2] == ("done", {"job": job["id"], "state": "succeeded"})
    for cut, (_, _, event_id) in enumerate(whole[:-1]):
        rest = client.get(url, headers={"last-event-id": event_id})
        assert parsed(rest.text) == whole[cut + 1 :]
    assert client.get(url, headers={"last-event-id": whole[-1][2]}).status_code == 204
    future = client.get(url, headers={"last-event-id": f"{job['id']}:999"})
    assert parsed(future.text) == whole


def test_one_stream_for_several_jobs(client: TestClient, api: Api, workshop: Workshop) -> None:
    ids = [api.generate("a dog", num_images=1)["id"] for _ in range(2)]
    for _ in ids:
        workshop.draw()
    url = f"/api/v1/events?jobs={','.join(ids)}"
    whole = parsed(client.get(url).text)
    assert {data["job"] for _, data, _ in whole} == set(ids)
    assert [kind for kind, _, _ in whole].count("done") == 2
    middle = len(whole) // 2
    assert parsed(client.get(url, headers={"last-event-id": whole[middle][2]}).text) == whole[middle + 1 :]
    assert client.get(url, headers={"last-event-id": whole[-1][2]}).status_code == 204
    other = client.get(f"/api/v1/events?jobs={ids[0]}", headers={"last-event-id": whole[middle][2]})
    assert other.status_code == 400


def test_done_is_derived_when_its_row_is_missing(
    client: TestClient, api: Api, workshop: Workshop, studio: Studio
) -> None:
    job = api.generate("a dog", num_images=1)
    workshop.draw()
    with studio.writing() as session:
        session.execute(delete(JobEvent).where(JobEvent.type == "done"))
    assert parsed(client.get(job["urls"]["events"]).text)[-1][:2] == (
        "done",
        {"job": job["id"], "state": "succeeded"},
    )


def running(workshop: Workshop, api: Api) -> Unit:
    api.generate("a dog")
    job = workshop.claim()
    return Unit(job=job.id, fence=job.fence)


def report(studio: Studio, unit: Unit, first: int, count: int) -> None:
    with studio.writing() as session:
        points = [Event("loss", {"points": [[step, 0.5]]}) for step in range(first, first + count)]
        assert leases.report(session, unit, points)


def test_live_events_reach_every_follower_gapless(api: Api, workshop: Workshop, studio: Studio) -> None:
    unit = running(workshop, api)
    many = 3 * RING

    async def follow(hub: Hub, after: int) -> list[int]:
        seen: list[int] = []
        async for batch in hub.events(LOCAL_OWNER, {unit.job: after}, ping_s=5):
            seen += [event.seq for event in batch]
            await asyncio.sleep(0.01)  # a slow client
        return seen

    async def scenario() -> list[list[int]]:
        hub = Hub(studio.database, jobs.events_after, tick_s=0.02)
        followers = [asyncio.create_task(follow(hub, after)) for after in (0, 0, 1)]
        await asyncio.sleep(0.1)
        for first in range(0, many, 48):
            await asyncio.to_thread(report, studio, unit, first, 48)
        with studio.writing() as session:
            assert leases.fail(session, unit, {"code": "x", "retryable": False, "message": "x"}, 1)
        seen = await asyncio.wait_for(asyncio.gather(*followers), 30)
        await asyncio.sleep(0.1)
        assert hub._rings == {}
        assert hub._looking is None or hub._looking.done()
        return list(seen)

    followed = asyncio.run(scenario())
    last = workshop.job(unit.job).last_event
    assert last > many
    assert followed == [
        list(range(1, last + 1)),
        list(range(1, last + 1)),
        list(range(2, last + 1)),
    ]


def test_idle_streams_are_pinged_and_end_when_the_hub_closes(
    api: Api, workshop: Workshop, studio: Studio
) -> None:
    unit = running(workshop, api)

    async def scenario() -> list[int]:
        hub = Hub(studio.database, jobs.events_after, tick_s=0.02)
        batches: list[int] = []

        async def follow() -> None:
            async for batch in hub.events(LOCAL_OWNER, {unit.job: 0}, ping_s=0.05):
                batches.append(len(batch))

        task = asyncio.create_task(follow())
        await asyncio.sleep(0.4)
        hub.close()
        await asyncio.wait_for(task, 1)
        return batches

    batches = asyncio.run(scenario())
    assert sum(batches) == 2
    assert batches.count(0) >= 2


def test_an_owner_may_open_so_many_streams(studio: Studio) -> None:
    hub = Hub(studio.database, jobs.events_after)
    opened = [hub.stream(LOCAL_OWNER) for _ in range(STREAMS_PER_OWNER)]
    for stream in opened:
        stream.__enter__()
    with pytest.raises(TooMany), hub.stream(LOCAL_OWNER):
        pass
    opened[0].__exit__(None, None, None)
    with hub.stream(LOCAL_OWNER):
        assert hub.streams == STREAMS_PER_OWNER


@pytest.fixture
def served(app: FastAPI) -> Iterator[int]:
    """The application on a real socket; its port."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 40) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_client_that_goes_away_leaves_nothing(
    app: FastAPI, served: int, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx2 as httpx

    monkeypatch.setattr("backend.events.Hub.events.__defaults__", (0.1, 900.0))
    workshop = Workshop(studio)
    workshop.open()
    with httpx.Client(base_url=f"http://127.0.0.1:{served}") as client:
        job = client.post("/api/v1/generations", json={"prompt": "a dog"}).json()
        hub: Hub = app.state.hub
        with client.stream("GET", job["urls"]["events"]) as stream:
            for line in stream.iter_lines():
                if line.startswith("event: state"):
                    assert hub.streams == 1  # here: leaving the loop may close the connection already
                    break
        wait_until(lambda: hub.streams == 0 and not hub._rings)


def test_a_client_that_goes_while_it_is_sent_to_ends_the_stream_at_once() -> None:
    """The generator stands at its yield then; it must not wait for the garbage collector."""
    ended = []

    async def content() -> AsyncGenerator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            ended.append(True)

    async def served() -> None:
        sending = asyncio.Event()

        async def receive() -> dict[str, str]:
            await sending.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.body":
                sending.set()
                await asyncio.sleep(60)

        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "GET"}
        kept = content()  # as a traceback would keep it
        await _EventStream(kept, nullcontext())(scope, receive, send)
        assert ended
        await kept.aclose()

    asyncio.run(served())
