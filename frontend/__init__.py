"""The pages: a second face of the same services, rendered on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import AppError, MethodNotAllowed, NotFound
from frontend.pages import ROUTERS
from frontend.rendering import STATIC, KeptFiles, error_page

if TYPE_CHECKING:
    from backend.studio import Studio

__all__ = ["mount"]


def mount(app: FastAPI, studio: Studio) -> None:
    """Add every page and the static files. The pages read ``studio`` from ``app.state``."""
    app.state.studio = studio
    app.mount("/static", KeptFiles(directory=STATIC), name="static")
    for router in ROUTERS:
        app.include_router(router, include_in_schema=False)
    _show_lost_visitors(app)


def _show_lost_visitors(app: FastAPI) -> None:
    """An address that no route serves is answered with a page where a browser asks for one."""
    otherwise = app.exception_handlers[HTTPException]
    kinds: dict[int, type[AppError]] = {404: NotFound, 405: MethodNotAllowed}

    @app.exception_handler(HTTPException)
    def lost(request: Request, error: HTTPException) -> Response:
        page = "text/html" in request.headers.get("accept", "") and not request.scope["path"].startswith(
            "/api/"
        )
        if page and error.status_code in kinds:
            return error_page(request, kinds[error.status_code]())
        answer: Response = otherwise(request, error)  # type: ignore[assignment]
        return answer
