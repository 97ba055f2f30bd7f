"""Queue ``/queue``: what runs, what waits and where it stands, who works, what ended lately."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from backend.schemas.images import Image
from backend.schemas.jobs import Job
from backend.services import images, jobs
from frontend import job_view, phrases, worker_view
from frontend.asking import Owner, Studied
from frontend.rendering import PageRoute, is_fragment, render

router = APIRouter(route_class=PageRoute)
LATELY = 10


@dataclass(frozen=True)
class Item:
    """A job as a line of the queue."""

    job: Job
    headline: str
    method: str
    sentence: str
    ended: str
    picture: str | None
    drawn: Image | None
    ring: float | None


@router.get("/queue")
def queue(request: Request, studio: Studied, owner: Owner) -> Response:
    with studio.reading() as session:
        live = [
            job
            for state in ("running", "queued", "blocked")
            for job in jobs.page(session, owner, state=state, limit=100)[0]
        ]
        newest, _ = jobs.page(session, owner, limit=LATELY + len(live))
        shown = [_item(session, owner, jobs.to_schema(session, job)) for job in live]
        shown.sort(key=lambda item: -1 if item.job.queue_position is None else item.job.queue_position)
        ended = [jobs.to_schema(session, job) for job in newest if job not in live][:LATELY]
        return render(
            request,
            "_queue.html" if is_fragment(request) else "queue.html",
            live=shown,
            ended=[_item(session, owner, job) for job in ended],
            workers=worker_view.workers(session),
        )


def _item(session: Session, owner: str, job: Job) -> Item:
    taught = job_view.concepts_of(session, owner, job)
    drawn, _ = images.page(session, owner, job=job.id, limit=1)
    ring = job_view.History(session, owner, job).ring() if job.state == "running" else None
    ended = phrases.ago(job.finished_at) if job.finished_at else ""
    return Item(
        job=job,
        headline=job_view.headline(job, taught),
        method=job_view.method_title(job),
        sentence=job_view.sentence(job),
        ended=ended,
        picture=taught[0].picture_url if taught else None,
        drawn=images.to_schema(session, drawn[0]) if drawn else None,
        ring=ring,
    )
