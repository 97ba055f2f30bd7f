"""What supervisor and executor say to each other: one JSON object a line over a pipe, every one tagged (job, fence).

The executor has no database and no credentials: it gets local files in, and leaves local files in the job's staging
directory. Paths travel here and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from backend.schemas.bases import BaseDescription
from backend.schemas.generations import GuidedAttention
from backend.schemas.jobs import WorkSpent
from backend.schemas.presence import Presence
from backend.schemas.strict import Strict


class Unit(Strict):
    """The tag of every message about a job: a stale fence is ignored by both sides."""

    job: str
    fence: int


# ---- supervisor -> executor


class RunJob(Unit):
    """Do this job. ``inputs`` maps a storage key of the spec to a readable local file; ``checkpoints`` is the directory
    that outlives attempts; ``staging`` is this attempt's own; ``cache`` is shared (prior images)."""

    type: Literal["run"] = "run"
    kind: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    staging: str
    checkpoints: str
    cache: str
    base_folder: str
    done_indices: list[int] = Field(
        default_factory=list, description="images that earlier attempts published"
    )
    checkpoint_s: float = 60.0
    lease_s: float = Field(
        default=20.0, description="without a `renew` for so long the executor releases by itself"
    )


class RunTogether(Strict):
    """Do these jobs at once, as far as they can share work. Everything else is said of each job by itself."""

    type: Literal["together"] = "together"
    jobs: list[RunJob] = Field(min_length=1)


class RenewLease(Unit):
    """The database still says that this attempt holds the job."""

    type: Literal["renew"] = "renew"


class CancelJob(Unit):
    """Stop at the next step boundary; nothing is kept."""

    type: Literal["cancel"] = "cancel"


class FinishJob(Unit):
    """Training only: stop now and keep what is learned."""

    type: Literal["finish"] = "finish"


class ReleaseJob(Unit):
    """Write a checkpoint now and stop: the job goes back to the queue (deploy, lost lease)."""

    type: Literal["release"] = "release"


# ---- executor -> supervisor


class Ready(Strict):
    """Sent once: libraries are loaded, the device answers, ``bases`` can be served."""

    type: Literal["ready"] = "ready"
    device: str
    bases: list[BaseDescription]
    base_folders: dict[str, str]


class Progress(Unit):
    type: Literal["progress"] = "progress"
    phase: str
    step: int
    total: int
    rate: float | None = None
    eta_s: float | None = None


class Loss(Unit):
    type: Literal["loss"] = "loss"
    points: list[tuple[int, float]]


class Preview(Unit):
    """A preview picture in staging; ``file`` is relative to it."""

    type: Literal["preview"] = "preview"
    step: int
    index: int
    prompt: str
    file: str


class Checkpointed(Unit):
    """A checkpoint verifies on disk; ``step`` steps are safe."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int


class Note(Unit):
    type: Literal["note"] = "note"
    code: str
    message: str


class ImageDone(Unit):
    """A finished picture in staging, to be published at once by a fenced commit; its recipe stands in the file too."""

    type: Literal["image"] = "image"
    index: int
    seed: int
    file: str
    presence: list[Presence] = Field(default_factory=list)
    attention: GuidedAttention | None = Field(default=None, description="where it is not what the spec says")


class Succeeded(Unit):
    """``files`` maps a role ("weights") to a file in staging; ``report`` becomes part of the result."""

    type: Literal["succeeded"] = "succeeded"
    files: dict[str, str]
    report: dict[str, Any]
    peak_memory_bytes: int | None = None
    spent: dict[str, WorkSpent] = Field(default_factory=dict, description="by kind of work")


class Failed(Unit):
    type: Literal["failed"] = "failed"
    code: str
    retryable: bool
    message: str
    sticky: bool = Field(default=False, description="the device is spoilt: this child must be replaced")
    trace: str = Field(default="", description="for the log only")
    report: dict[str, Any] | None = Field(
        default=None, description="what was found out before it failed; kept with the job"
    )


class Stopped(Unit):
    """Answer to cancel or release: the job no longer computes."""

    type: Literal["stopped"] = "stopped"
    reason: Literal["cancelled", "released"]


ToExecutor = Annotated[
    RunJob | RunTogether | RenewLease | CancelJob | FinishJob | ReleaseJob, Field(discriminator="type")
]
FromExecutor = Annotated[
    Ready | Progress | Loss | Preview | Checkpointed | Note | ImageDone | Succeeded | Failed | Stopped,
    Field(discriminator="type"),
]
TO_EXECUTOR: TypeAdapter[ToExecutor] = TypeAdapter(ToExecutor)
FROM_EXECUTOR: TypeAdapter[FromExecutor] = TypeAdapter(FromExecutor)
