"""Workers as the queue and the settings show them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.models import Worker, now
from frontend import phrases

SEEN_LATELY = timedelta(minutes=2)
STATES = {
    "starting": "warming up",
    "ready": "ready",
    "busy": "at work",
    "defunct": "its device is broken; restart it",
    "stopped": "stopped",
}


@dataclass(frozen=True)
class WorkerView:
    device: str
    sentence: str
    memory: str
    memory_share: float | None


def workers(session: Session) -> list[WorkerView]:
    """Those that were seen lately and have not said goodbye."""
    query = select(Worker).where(Worker.seen_at > now() - SEEN_LATELY, Worker.state != "stopped")
    return [_view(worker) for worker in session.scalars(query.order_by(Worker.slot))]


def _view(worker: Worker) -> WorkerView:
    used, total = worker.memory.get("used_bytes"), worker.memory.get("total_bytes")
    memory = f"{phrases.size(used)} of {phrases.size(total)}" if used and total else ""
    said = [STATES.get(worker.state, worker.state)]
    if memory:
        said.append(f"{memory} in use")
    if worker.bases:
        said.append(f"has {', '.join(sorted(worker.bases))}")
    said.append(f"seen {phrases.ago(worker.seen_at)}")
    device = "CPU" if worker.device == "cpu" else worker.device
    return WorkerView(device, ", ".join(said), memory, used / total if used and total else None)
