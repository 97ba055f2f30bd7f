"""Event streams (text/event-stream): replayable by ``Last-Event-ID``, ended by ``done``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from typing import Annotated, Any

from anyio import CancelScope
from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from backend.api.dependencies import ItemId, Owner, checked
from backend.api.registry import make_router, problems
from backend.errors import BadRequest, Invalid
from backend.events import Hub
from backend.models import JobEvent
from backend.schemas.jobs import TERMINAL
from backend.services import jobs
from backend.studio import Studio

router = make_router("events")
MAX_JOBS = 50
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "The stream", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
Label = Callable[[Mapping[str, int]], str]


@router.get("/jobs/{id}/events", response_class=Response, responses={**_STREAM, **problems(404, 429)})
async def stream_job_events(job_id: ItemId, request: Request, owner: Owner) -> Response:
    """What happens to a job. 204 when it has ended and everything was replayed already."""
    given = request.headers.get("last-event-id", "")
    match = re.fullmatch(rf"{job_id}:(\d{{1,12}})", given)
    if given and match is None:
        raise BadRequest("Last-Event-ID is not an id of this stream.", code="bad-event-id")
    after = {job_id: int(match[1]) if match else 0}
    return await _open(request, owner, after, lambda _: "", single=job_id)


@router.get("/events", response_class=Response, responses={**_STREAM, **problems(404, 429)})
async def stream_events(
    request: Request,
    owner: Owner,
    jobs: Annotated[str, Query(max_length=4000, description="job ids, comma-separated")],
) -> Response:
    """The same for several jobs over one connection; every event's data names its ``job``."""
    ids = list(dict.fromkeys(checked(part) for part in jobs.split(",")))
    if len(ids) > MAX_JOBS:
        raise Invalid.at("/jobs", f"Follow at most {MAX_JOBS} jobs in one stream.")
    stamp = hashlib.sha256(",".join(ids).encode()).hexdigest()[:8]
    given = request.headers.get("last-event-id", "")
    match = re.fullmatch(rf"{stamp}-(\d{{1,12}}(?:\.\d{{1,12}}){{{len(ids) - 1}}})", given)
    if given and match is None:
        raise BadRequest("Last-Event-ID is not an id of this stream.", code="bad-event-id")
    seen = [int(part) for part in match[1].split(".")] if match else [0] * len(ids)

    def label(position: Mapping[str, int]) -> str:
        return f"{stamp}-" + ".".join(str(position[job_id]) for job_id in ids)

    return await _open(request, owner, dict(zip(ids, seen, strict=True)), label)


async def _open(
    request: Request, owner: str, after: dict[str, int], label: Label, single: str | None = None
) -> Response:
    studio: Studio = request.app.state.studio
    hub: Hub = request.app.state.hub
    if not await run_in_threadpool(_prepare, studio, owner, after):
        return Response(status_code=204)

    async def stream() -> AsyncGenerator[bytes]:
        position = dict(after)
        yield b": moongate\nretry: 2000\n\n"
        async with aclosing(hub.events(owner, after)) as batches:
            async for batch in batches:
                if not batch:
                    yield b": ping\n\n"
                for event in batch:
                    position[event.job_id] = event.seq
                    yield _frame(event, f"{single}:{event.seq}" if single else label(position))

    return _EventStream(stream(), hub.stream(owner))


class _EventStream(StreamingResponse):
    """Counts as an open stream from its making (429 above the limit) until it has ended, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncGenerator[bytes], counted: AbstractContextManager[None]) -> None:
        super().__init__(content, headers={"cache-control": "no-store"})
        counted.__enter__()
        self._counted = counted
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # A client that goes while something is being sent to it leaves the generator at its yield, where it would
            # follow its jobs until the garbage collector finds it.
            with CancelScope(shield=True):
                await self._content.aclose()
            self._counted.__exit__(None, None, None)


def _prepare(studio: Studio, owner: str, after: dict[str, int]) -> bool:
    """Check every job; a number from the future means a full replay. False when nothing will ever follow."""
    open_ended = False
    with studio.reading() as session:
        for job_id, seq in after.items():
            row = jobs.get(session, owner, job_id)
            if seq > row.last_event:
                after[job_id] = 0
            open_ended |= row.state not in TERMINAL or after[job_id] < row.last_event
    return open_ended


def _frame(event: JobEvent, event_id: str) -> bytes:
    data = json.dumps({"job": event.job_id, **event.data}, ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(event=event.type, data_str=data, id=event_id)
