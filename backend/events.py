"""The event stream: one look at the database a tick and process, shared by every stream; rows are the truth.

A stream holds nothing but its cursor. What it has not sent yet lies in a short ring per followed job, or in the
table, so a slow client costs no memory and loses no event. Streams end with ``done``, after a quarter of an hour
(the browser reconnects and goes on), and at shutdown.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.db import Database
from backend.errors import TooMany
from backend.models import Job, JobEvent
from backend.schemas.jobs import TERMINAL

TICK_S = 0.25
PING_S = 15.0
LIFE_S = 900.0
STREAMS_PER_OWNER = 20
RING = 256
_BATCH = 200
_log = structlog.get_logger(__name__)

EventsAfter = Callable[[Session, str, Collection[str], Mapping[str, int], int], Sequence[JobEvent]]


@dataclass
class _Ring:
    """What is known of a followed job: its newest number, whether it has ended, its last events."""

    owner_id: str
    followers: int = 0
    last: int | None = None
    ended: str | None = None
    recent: deque[JobEvent] = field(default_factory=lambda: deque(maxlen=RING))

    def after(self, seq: int) -> list[JobEvent] | None:
        """Events that follow ``seq``, or None when the ring does not reach back so far."""
        if not self.recent or self.recent[0].seq > seq + 1:
            return None
        return [event for event in self.recent if event.seq > seq]


class Hub:
    """Lives on one event loop. ``events_after`` is ``services.jobs.events_after``."""

    def __init__(self, database: Database, events_after: EventsAfter, tick_s: float = TICK_S) -> None:
        self._database, self._events_after, self._tick_s = database, events_after, tick_s
        self._rings: dict[str, _Ring] = {}
        self._streams: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def streams(self) -> int:
        """Open streams, for the metrics."""
        return self._streams.total()

    def close(self) -> None:
        """End every stream now. Call it on the loop."""
        self._closed = True
        self._notify()
        self._wanted.set()

    # ---- for streams

    @contextmanager
    def stream(self, owner_id: str) -> Iterator[None]:
        """Counts a stream of the owner. TooMany above the limit."""
        if self._streams[owner_id] >= STREAMS_PER_OWNER:
            raise TooMany("Too many event streams are open. Close some pages.", headers={"Retry-After": "15"})
        self._streams[owner_id] += 1
        try:
            yield
        finally:
            self._streams[owner_id] -= 1
            if not self._streams[owner_id]:
                del self._streams[owner_id]

    async def events(
        self, owner_id: str, after: Mapping[str, int], ping_s: float = PING_S, life_s: float = LIFE_S
    ) -> AsyncGenerator[list[JobEvent]]:
        """Batches of events of the jobs in ``after`` that follow their numbers; an empty batch is a ping.

        Ends when every job has ended and its last event, ``done``, was given.
        """
        position, until = dict(after), time.monotonic() + life_s
        done: set[str] = set()
        with self._following(owner_id, position):
            while not self._closed and time.monotonic() < until:
                changed = self._changed
                batch = await self._next_batch(owner_id, position, done)
                if batch:
                    yield batch
                    continue
                if len(done) == len(position):
                    return
                try:
                    await asyncio.wait_for(changed.wait(), ping_s)
                except TimeoutError:
                    yield []

    async def wait_for_end(self, owner_id: str, job_id: str, seconds: float) -> None:
        """Return when the job has ended, or after so many seconds."""
        until = time.monotonic() + seconds
        with self._following(owner_id, [job_id]):
            while not self._closed and self._rings[job_id].ended is None:
                left = until - time.monotonic()
                if left <= 0:
                    return
                changed = self._changed
                try:
                    await asyncio.wait_for(changed.wait(), left)
                except TimeoutError:
                    return

    async def _next_batch(self, owner_id: str, position: dict[str, int], done: set[str]) -> list[JobEvent]:
        batch: list[JobEvent] = []
        for job_id, seq in position.items():
            ring = self._rings[job_id]
            if job_id in done or ring.last is None:
                continue
            if seq < ring.last:
                found = ring.after(seq)
                if found is None:
                    found = await asyncio.to_thread(self._fetch, owner_id, {job_id: seq})
                batch += found
                position[job_id] = (
                    found[-1].seq if found else ring.last
                )  # rows that are gone are not waited for
            if position[job_id] >= ring.last and ring.ended is not None:
                done.add(job_id)
                if not batch or batch[-1].job_id != job_id or batch[-1].type != "done":
                    batch += _ending(job_id, ring, resumed=seq >= ring.last)
        return batch

    # ---- the shared look

    @contextmanager
    def _following(self, owner_id: str, job_ids: Collection[str]) -> Iterator[None]:
        for job_id in job_ids:
            self._rings.setdefault(job_id, _Ring(owner_id)).followers += 1
        self._wanted.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_on())
        try:
            yield
        finally:
            for job_id in job_ids:
                self._rings[job_id].followers -= 1
                if not self._rings[job_id].followers:
                    del self._rings[job_id]

    async def _look_on(self) -> None:
        while self._rings and not self._closed:
            self._wanted.clear()
            asked = {job_id: (ring.owner_id, ring.last) for job_id, ring in self._rings.items()}
            try:
                seen = await asyncio.to_thread(self._look, asked)
            except Exception as error:  # the database may be away for a while; streams outlive that
                _log.warning("event_look_failed", error=type(error).__name__)
                seen = {}
            if seen:
                self._take_in(seen)
                self._notify()
            try:
                await asyncio.wait_for(self._wanted.wait(), self._tick_s)
            except TimeoutError:
                continue

    def _look(
        self, asked: Mapping[str, tuple[str, int | None]]
    ) -> dict[str, tuple[int, str, list[JobEvent]]]:
        """Jobs whose newest number or state changed, with their new events (in a thread)."""
        with self._database.read() as session:
            rows = session.execute(select(Job.id, Job.last_event, Job.state).where(Job.id.in_(asked))).all()
            moved = {row.id: row for row in rows if row.last_event != asked[row.id][1]}
            news: dict[str, list[JobEvent]] = {job_id: [] for job_id in moved}
            by_owner: dict[str, dict[str, int]] = {}
            for job_id in moved:
                owner_id, last = asked[job_id]
                if last is not None:
                    by_owner.setdefault(owner_id, {})[job_id] = last
            for owner_id, after in by_owner.items():
                for event in self._events_after(session, owner_id, list(after), after, RING):
                    news[event.job_id].append(event)
        return {job_id: (row.last_event, row.state, news[job_id]) for job_id, row in moved.items()}

    def _take_in(self, seen: Mapping[str, tuple[int, str, list[JobEvent]]]) -> None:
        for job_id, (last, state, news) in seen.items():
            ring = self._rings.get(job_id)
            if ring is None:
                continue
            if ring.last is None:
                ring.last = last
            elif news:
                ring.recent.extend(news)
                ring.last = news[-1].seq
            if ring.last == last and state in TERMINAL:  # otherwise the rest comes with the next look
                ring.ended = state

    def _fetch(self, owner_id: str, after: Mapping[str, int]) -> list[JobEvent]:
        with self._database.read() as session:
            return list(self._events_after(session, owner_id, list(after), after, _BATCH))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _ending(job_id: str, ring: _Ring, resumed: bool) -> list[JobEvent]:
    """``done`` derived from the row, for a stream that did not just send it; a resumed stream had it before."""
    if resumed:
        return []
    return [JobEvent(job_id=job_id, seq=ring.last, type="done", data={"state": ring.ended}, attempt=0)]
