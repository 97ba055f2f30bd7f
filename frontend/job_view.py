"""A job in words and pictures, for every page that shows one."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from backend.errors import NotFound
from backend.models import JobEvent
from backend.schemas.concepts import Concept
from backend.schemas.jobs import TERMINAL, Job
from backend.services import concepts, jobs, weights
from frontend import measure_view, phrases

ALL_EVENTS = 20_000


def is_live(job: Job) -> bool:
    return job.state not in TERMINAL


def concepts_of(session: Session, owner: str, job: Job) -> list[Concept]:
    """The concepts that a training teaches, whose weights are merged or made smaller, or that an evaluation is about;
    forgotten ones are left out."""
    named = job.request.get("concepts", [])
    if job.kind == "compress":
        with suppress(NotFound):
            row = weights.get(session, owner, job.request["weights"])
            named = weights.to_schema(session, row).concepts
    if job.kind == "merge":
        named = measure_view.concepts_of(session, owner, [each["id"] for each in job.request["weights"]])
    if job.kind == "evaluate":
        named = measure_view.concepts_of(session, owner, job.request["weights"])
    found = []
    for concept_id in named:
        try:
            found.append(concepts.to_schema(session, concepts.get(session, owner, concept_id)))
        except NotFound:
            continue
    return found


def headline(job: Job, taught: Iterable[Concept] = ()) -> str:
    """What the job is about, in a few words."""
    if job.kind == "train":
        names = " and ".join(concept.name for concept in taught) or "a concept"
        return f"{'Taught' if job.state == 'succeeded' else 'Learning'} {names}"
    if job.kind == "merge":
        names = " and ".join(concept.name for concept in taught) or "concepts"
        return f"{'Merged' if job.state == 'succeeded' else 'Merging'} {names}"
    if job.kind == "compress":
        names = " and ".join(concept.name for concept in taught) or "a concept"
        return f"{'Made' if job.state == 'succeeded' else 'Making'} {names} smaller"
    if job.kind == "evaluate":
        names = " and ".join(concept.name for concept in taught) or "a concept"
        return f"{'Measured' if job.state == 'succeeded' else 'Measuring'} {names}"
    if job.kind == "generate":
        return str(job.request.get("prompt", "Pictures"))
    return phrases.kind(job.kind)


def method_title(job: Job) -> str:
    """The method that a training learns with, or of a merge; empty for other jobs."""
    return phrases.method(str(job.request.get("method", ""))) if job.kind in ("train", "merge") else ""


def sentence(job: Job) -> str:
    """How it stands: ``Training: step 240 of 600, about 40 s left``."""
    if job.state == "blocked":
        return f"Waits for the {' and the '.join(each.what for each in job.waits_for)}"
    if job.state == "queued":
        ahead = job.queue_position or 0
        return "Next in the queue" if ahead == 0 else f"Waiting behind {phrases.count(ahead, 'job')}"
    if job.state == "running":
        return progress_sentence(job)
    if job.state == "failed" and job.error:
        return job.error.message
    if job.state == "cancelled":
        return "Cancelled; nothing of it was kept" if job.kind == "train" else "Cancelled"
    took = f" in {phrases.duration(job.metrics.run_s)}" if job.metrics.run_s is not None else ""
    return f"Done{took}" if job.state == "succeeded" else phrases.state(job.state).capitalize()


def progress_sentence(job: Job) -> str:
    progress = job.progress
    if job.cancel_requested:
        return "Cancelling: it stops at the next step"
    if progress is None or not progress.phase:
        return "Starting"
    return phrases.standing(progress.phase, progress.step, progress.total, progress.eta_s)


@dataclass(frozen=True)
class Lesson:
    """A training under way, as a concept's gate shows it."""

    id: str
    ring: float
    sentence: str
    seen: int


def lessons(session: Session, owner: str) -> dict[str, Lesson]:
    """The live training of each concept that has one."""
    found: dict[str, Lesson] = {}
    for state in ("blocked", "queued", "running"):
        rows, _ = jobs.page(session, owner, state=state, kind="train", limit=50)
        for row in rows:
            job = jobs.to_schema(session, row)
            history = History(session, owner, job)
            lesson = Lesson(job.id, history.ring(), sentence(job), history.seen)
            found |= dict.fromkeys(job.request.get("concepts", []), lesson)
    return found


@dataclass
class Column:
    """The previews of one step, under each other."""

    step: int
    pictures: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """A line of the log: when (also as seconds since the job was asked for) and what."""

    at: datetime
    after_s: float
    text: str


@dataclass(frozen=True)
class Told:
    """What a happening says to a person."""

    at: datetime
    message: str


class History:
    """Everything that happened to a job, sorted for its page."""

    def __init__(self, session: Session, owner: str, job: Job) -> None:
        self.events = jobs.events_after(session, owner, [job.id], {}, limit=ALL_EVENTS)
        self.seen = max((event.seq for event in self.events), default=0)
        self._began = job.created_at

    def of(self, kind: str) -> list[JobEvent]:
        return [event for event in self.events if event.type == kind]

    def ring(self) -> float:
        """Share of the gate's ring, 0..1: the furthest that this attempt has come."""
        reached = 0.0
        for event in self.events:
            if event.type == "state":
                reached = 0.0
            elif event.type == "progress":
                share = phrases.ring(event.data["phase"], event.data["step"], event.data["total"])
                reached = max(reached, share or 0.0)
        return reached

    def steps(self) -> tuple[int, int] | None:
        """Optimiser steps made and planned; what is saved in the end says how many were made."""
        told = [event.data for event in self.of("progress")]
        trained = [data for data in told if data["phase"] == "training"]
        made = [data["step"] for data in told if data["phase"] in ("training", "saving")]
        return (made[-1], trained[-1]["total"]) if trained else None

    def strip(self) -> list[Column]:
        """Previews by step; of a step drawn twice, after a resume, the later ones."""
        columns: dict[int, dict[int, dict[str, Any]]] = {}
        for event in self.of("preview"):
            picture = event.data | {"prompt": phrases.prompt(event.data["prompt"])}
            columns.setdefault(picture["step"], {})[picture["index"]] = picture
        return [Column(step, [column[i] for i in sorted(column)]) for step, column in sorted(columns.items())]

    def points(self) -> list[tuple[int, float]]:
        """The loss by step; a step made twice counts as it was made last."""
        found = {int(step): float(loss) for event in self.of("loss") for step, loss in event.data["points"]}
        return sorted(found.items())

    def notes(self) -> list[Told]:
        return [Told(event.created_at, str(event.data["message"])) for event in self.of("note")]

    def log(self) -> list[Entry]:
        """States, phases and notes in order."""
        entries, phase = [], ""
        for event in self.events:
            if event.type == "progress":
                said = phrases.phase(str(event.data.get("phase", "")))
                if said == phase:
                    continue
                phase = said
            else:
                said = _said(event)
            if said:
                after_s = (event.created_at - self._began).total_seconds()
                entries.append(Entry(event.created_at, after_s, said))
        return entries


def _said(event: JobEvent) -> str:
    data = event.data
    if event.type == "state":
        attempt = f", attempt {data['attempt']}" if data.get("attempt", 0) > 1 else ""
        note = f": {data['note']}" if data.get("note") else ""
        return f"{phrases.state(str(data['state'])).capitalize()}{attempt}{note}"
    if event.type == "note":
        return str(data["message"])
    if event.type == "preview" and data.get("index") == 0:
        return f"Previews at step {data['step']}"
    if event.type == "image":
        return f"Picture {data['index'] + 1} finished"
    return ""
