"""The pages: a second face of the same services, rendered on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI

from frontend.pages import ROUTERS
from frontend.rendering import STATIC, KeptFiles

if TYPE_CHECKING:
    from backend.studio import Studio

__all__ = ["mount"]


def mount(app: FastAPI, studio: Studio) -> None:
    """Add every page and the static files. The pages read ``studio`` from ``app.state``."""
    app.state.studio = studio
    app.mount("/static", KeptFiles(directory=STATIC), name="static")
    for router in ROUTERS:
        app.include_router(router, include_in_schema=False)
