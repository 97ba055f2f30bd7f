"""A job ``/jobs/{id}``: live while it runs, and afterwards what it gave and what happened to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import NotFound
from backend.schemas.evaluations import EvaluationReport
from backend.schemas.jobs import Job
from backend.schemas.merges.requests import MergeReport
from backend.schemas.methods import CARDS
from backend.services import images, jobs, weights
from frontend import job_view, measure_view, merge_view, phrases, side_by_side
from frontend.asking import ItemId, Owner, Studied
from frontend.job_view import History
from frontend.measure_view import MeasureView
from frontend.merge_view import ReportView
from frontend.rendering import PageRoute, render, see

router = APIRouter(route_class=PageRoute)
MOST_IMAGES = 64


@router.get("/jobs/{id}")
def show_job(request: Request, studio: Studied, owner: Owner, id: ItemId) -> Response:
    with studio.reading() as session:
        row = jobs.get(session, owner, id)
        view = _view(session, owner, jobs.to_schema(session, row))
        return render(request, "job.html", here="/queue", settings=_settings(row.spec), **view)


def _view(session: Session, owner: str, job: Job) -> dict[str, Any]:
    taught = job_view.concepts_of(session, owner, job)
    history = History(session, owner, job)
    strip, points = history.strip(), history.points()
    drawn, _ = images.page(session, owner, job=job.id, limit=MOST_IMAGES)
    made = history.steps()
    return {
        "job": job,
        "live": job_view.is_live(job),
        "concept": taught[0] if taught else None,
        "concepts": taught,
        "prompt": f"{side_by_side.prompt_of(taught)} " if taught else "",
        "made": str((job.result or {}).get("weights", "")),
        "report": _merge(session, owner, job, [one.name for one in taught]),
        "headline": job_view.headline(job, taught),
        "method": job_view.method_title(job),
        "stepless": _stepless(job),
        "sentence": job_view.sentence(job),
        "ring": history.ring(),
        "seen": history.seen,
        "strip": strip,
        "prompts": [picture["prompt"] for picture in strip[-1].pictures] if strip else [],
        "points": points,
        "curve_summary": _summary(points),
        "steps": f"{made[0]} / {made[1]}" if made else "–",
        "notes": history.notes(),
        "log": history.log(),
        "images": images.to_schemas(session, drawn[::-1]),
        "measures": _measures(job),
        "judged": _judged(job, {one.id: one.name for one in taught}),
        "machine": _machine(job),
    }


def _stepless(job: Job) -> bool:
    """Whether the job's method computes its weights at once, so that there is no curve."""
    card = CARDS.get(str(job.request.get("method", "")))
    return card is not None and "steps" not in card.params_type.model_fields


def _summary(points: list[tuple[int, float]]) -> str:
    if not points:
        return "No values yet."
    return f"From {points[0][1]:.3f} at step {points[0][0]} to {points[-1][1]:.3f} at step {points[-1][0]}."


def _tokens(concepts: list[dict[str, Any]]) -> str:
    return ", ".join(f"@{one['token']}" for one in concepts)


_TOLD: dict[str, Callable[[Any], tuple[str, str]]] = {
    "layout": lambda value: ("Boxes", str(len(value["regions"])) if value else ""),
    "check": lambda value: ("Looks for", _tokens(value["concepts"]) if value else "nobody"),
    "attention_concepts": lambda value: ("Attention to", f"{len(value)} of its concepts" if value else ""),
    "calibration": lambda value: ("Scale found by", str(value["name"]) if value else "nobody: it is 1"),
    "judges": lambda value: ("Judges", str(value["name"]) if value else "nobody"),
    "known": lambda value: ("Similarity before", "as its calibration found it" if value else ""),
}
"""Parts of specs that are more than a number or a text: title and words, no words for what need not be said."""


def _settings(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """Everything that the result depends on, as a table: name and value."""
    rows: list[tuple[str, str]] = []
    for name, value in spec.items():
        if name == "spec_version":
            continue
        if name == "params":
            rows += [(_title(parameter), _plain(setting)) for parameter, setting in value.items()]
        elif name == "method":
            rows.append(("Method", phrases.method(str(value))))
        elif name == "concepts":
            rows.append(("Concepts", ", ".join(f"@{one['token']} {one['class_noun']}" for one in value)))
            photos = sum(len(one["photos"]) for one in value)
            rows += [("Photos", str(photos))] if photos else []
        elif name == "renames":
            changed = [f"@{old} as @{new}" for each in value.values() for old, new in each.items()]
            rows += [("Renamed", ", ".join(changed))] if changed else []
        elif name in _TOLD:
            rows += [(told, words) for told, words in [_TOLD[name](value)] if words]
        elif name == "weights":
            used = [f"@{' @'.join(one['tokens'])} at {one['scale']}" for one in value]
            rows.append(("Weights", ", ".join(used) or "the base model as it is"))
        elif name == "compression":
            rows.append(("Kept by", f"{value['criterion']}, {value['value']:g}"))
            rows.append(("Stored as", _plain(value["precision"])))
        else:
            rows.append((_title(name), _plain(value)))
    return rows


def _title(name: str) -> str:
    return name.replace("_", " ").removeprefix("num ").capitalize()


def _plain(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(_plain(inner) for inner in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else phrases.prompt(str(value))


def _measures(job: Job) -> list[tuple[str, str, str]]:
    """Name, value with its unit, and what it means."""
    metrics = job.metrics
    found = (
        [("Took", phrases.duration(metrics.run_s), "From the first step to the last")]
        if metrics.run_s
        else []
    )
    if metrics.peak_memory_bytes:
        found.append(("Memory", phrases.size(metrics.peak_memory_bytes), "Most memory that it held at once"))
    return found


def _judged(job: Job, names: dict[str, str]) -> list[tuple[str, list[MeasureView]]]:
    """What an evaluation found, by concept."""
    if job.kind != "evaluate" or job.state != "succeeded" or not job.result:
        return []
    return measure_view.of_report(EvaluationReport.model_validate(job.result["report"]), names)


def _merge(session: Session, owner: str, job: Job, names: list[str]) -> ReportView | None:
    """What a merge says of itself, whether it passed its verification or not."""
    if job.kind != "merge" or not job.result:
        return None
    told = (job.result.get("report") or {}).get("merge")
    if made := job.result.get("weights"):
        with suppress(NotFound):
            told = weights.get(session, owner, made).report.get("merge")
    return merge_view.of_report(MergeReport.model_validate(told), names) if told else None


def _machine(job: Job) -> list[tuple[str, str, str]]:
    metrics = job.metrics
    rows = [
        ("Waited", phrases.duration(metrics.queue_s), "From asking to the start of the work"),
        ("Getting ready", phrases.duration(metrics.prepare_s), "Loading what the work needs"),
        ("Work", phrases.duration(metrics.run_s), "From the first step to the last"),
        ("Memory", phrases.size(metrics.peak_memory_bytes), "Most memory that it held at once"),
        ("Attempts", str(job.attempt), "More than one when a worker was lost in between"),
    ]
    if job.max_lost_seconds is not None:
        at_risk = f"at most {phrases.duration(job.max_lost_seconds)} of work"
        rows.append(("A crash would cost", at_risk, "Time between two checkpoints"))
    if job.last_checkpoint_step is not None:
        rows.append(("Safe until step", str(job.last_checkpoint_step), "The newest checkpoint"))
    return rows


@router.post("/jobs/{id}/cancel")
def cancel_job(studio: Studied, owner: Owner, id: ItemId) -> Response:
    with studio.writing() as session:
        jobs.request_cancel(session, owner, id)
    return see(f"/jobs/{id}")


@router.post("/jobs/{id}/finish")
def finish_job(studio: Studied, owner: Owner, id: ItemId) -> Response:
    with studio.writing() as session:
        jobs.request_finish(session, owner, id)
    return see(f"/jobs/{id}")


@router.post("/jobs/{id}/retry")
def retry_job(studio: Studied, owner: Owner, id: ItemId) -> Response:
    studio.storage.require_space()
    with studio.writing() as session:
        again = jobs.retry(session, owner, id, studio.settings.max_queued_jobs)
    return see(f"/jobs/{again.id}")
