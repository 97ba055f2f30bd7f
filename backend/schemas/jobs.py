"""Jobs as the API shows them, and the events of their streams."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from backend.schemas.strict import Id, Strict

JobKind = Literal["train", "merge", "compress", "generate", "evaluate", "export"]
JobState = Literal["blocked", "queued", "running", "succeeded", "failed", "cancelled"]
TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
EventType = Literal["state", "progress", "loss", "preview", "image", "note", "done"]
"""What the data of an event holds:

- ``state`` {state, attempt, note?}; ``progress`` {phase, step, total, rate, eta_s}; ``loss`` {points: [[step, loss]]};
- ``preview`` {step, index, prompt, url}; ``image`` {id, index, url, thumbnail_url};
- ``note`` {code, message}: what happened to the job, as `worker_lost`, `resumed`, `checkpoint_discarded`, `recovered`;
- ``done`` {state}: the last event of a job.
"""


class JobProgress(Strict):
    """``rate`` in steps per second; ``eta_s`` in seconds; both None until known."""

    phase: str
    step: int
    total: int
    rate: float | None = None
    eta_s: float | None = None


class WorkSpent(Strict):
    """What one kind of a job's work took: seconds, and how many pieces of it there were."""

    seconds: float
    count: int


class JobMetrics(Strict):
    queue_s: float | None = None
    prepare_s: float | None = None
    run_s: float | None = None
    peak_memory_bytes: int | None = None
    spent: dict[str, WorkSpent] | None = Field(
        default=None,
        description="of a training's last attempt: loading; prior, a solver step of four pictures; photos; "
        "train, an optimiser step; preview; calibration; saving",
    )


class JobError(Strict):
    """``code`` is stable; ``message`` is a sentence for a person, without paths or traces."""

    code: str
    retryable: bool
    message: str


class Awaited(Strict):
    """A job that another waits for."""

    job: Id
    what: str = Field(description="as a person calls it: `training of Stark`")


class Job(Strict):
    """``GET /jobs/{id}``."""

    id: Id
    kind: JobKind
    state: JobState
    progress: JobProgress | None
    queue_position: int | None = Field(description="0 is next; None unless queued")
    waits_for: list[Awaited] = Field(description="what a blocked job waits for; empty otherwise")
    attempt: int
    max_lost_seconds: float | None = Field(
        description="work a crash may cost; None where there are no checkpoints"
    )
    last_checkpoint_step: int | None
    cancel_requested: bool
    metrics: JobMetrics
    request: dict[str, Any]
    result: dict[str, Any] | None
    error: JobError | None
    retry_of: Id | None
    urls: dict[str, str] = Field(description="self, events, cancel, page; `finish` for a running training")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
