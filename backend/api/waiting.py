"""``Prefer: wait=N``: hold the answer until the job has ended, at most N seconds, after the work was committed."""

from __future__ import annotations

import re

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from backend.auth import current_owner
from backend.events import Hub
from backend.services import jobs
from backend.studio import Studio

MAX_WAIT_S = 60
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,5})(?:$|[,;\s])", re.IGNORECASE)


def wanted_wait_s(prefer: str) -> int:
    """Seconds the client is willing to wait; 0 when it does not say. A preference that is not one is ignored."""
    match = _WAIT.search(prefer[:200])
    return min(int(match[1]), MAX_WAIT_S) if match else 0


class WaitingResponse(Response):
    """Sent in place of a 202; its body is the job as it stands when it ended or the time was up."""

    def __init__(self, accepted: Response, studio: Studio, hub: Hub, wait_s: int) -> None:
        super().__init__(accepted.body, accepted.status_code)
        self.raw_headers = accepted.raw_headers
        self._studio, self._hub, self._wait_s = studio, hub, wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        job_id = self.headers["location"].rpartition("/")[2]
        await self._hub.wait_for_end(current_owner(), job_id, self._wait_s)
        self.body = await run_in_threadpool(self._render, job_id)
        self.headers["content-length"] = str(len(self.body))
        self.headers["preference-applied"] = f"wait={self._wait_s}"
        await super().__call__(scope, receive, send)

    def _render(self, job_id: str) -> bytes:
        with self._studio.reading() as session:
            job = jobs.to_schema(session, jobs.get(session, current_owner(), job_id))
        return job.model_dump_json().encode()
