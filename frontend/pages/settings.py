"""Settings ``/settings``: how the studio is set up, to read."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from backend.models import Artifact, Image, Photo
from backend.schemas.version import VERSION
from backend.services import bases
from backend.studio import Studio
from frontend import phrases, worker_view
from frontend.asking import Owner, Studied
from frontend.rendering import PageRoute, render

router = APIRouter(route_class=PageRoute)


@router.get("/settings")
def settings(request: Request, studio: Studied, owner: Owner) -> Response:
    with studio.reading() as session:
        return render(
            request,
            "settings.html",
            bases=bases.list_all(session),
            workers=worker_view.workers(session),
            storage=_storage(session, studio, owner),
            version=VERSION,
        )


def _storage(session: Session, studio: Studio, owner: str) -> list[tuple[str, str, str]]:
    """Name, value, and what it means."""
    photos = session.scalar(select(func.count()).where(Photo.owner_id == owner)) or 0
    pictures = session.scalar(select(func.count()).where(Image.owner_id == owner)) or 0
    stored = session.scalar(select(func.sum(Artifact.size_bytes)).where(Artifact.owner_id == owner)) or 0
    database = "SQLite in the data directory" if studio.database.sqlite else "PostgreSQL"
    return [
        ("Photos", phrases.count(photos, "photo"), "Uploaded, upright and without metadata"),
        ("Pictures", phrases.count(pictures, "picture"), "Drawn and kept in the gallery"),
        ("Made here", phrases.size(float(stored)), "Weights, pictures and previews together"),
        ("Free", phrases.size(float(studio.storage.free_bytes())), "Room left where the files lie"),
        ("Database", database, "Where the studio keeps what it knows"),
    ]
