"""Turns view data into pages: one Jinja environment, addresses of static files, errors a person can read.

Everything is escaped; nothing that was stored is ever marked safe. Script and style come only from our own files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Coroutine
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from backend.errors import AppError, NotFound, Unavailable
from frontend import phrases, pictures

HERE = Path(__file__).resolve().parent
STATIC = HERE / "static"
RAIL = (
    ("/", "Studio", "house"),
    ("/concepts", "Concepts", "circle-dashed"),
    ("/compose", "Compose", "wand-sparkles"),
    ("/gallery", "Gallery", "images"),
    ("/queue", "Queue", "list-ordered"),
    ("/settings", "Settings", "settings"),
)


@lru_cache(maxsize=256)
def static(name: str) -> str:
    """Address of a static file, with a part of its hash so that browsers may keep it for ever."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    modules = sorted(path.name for path in (STATIC / "elements").glob("*.js"))
    environment.globals.update(static=static, rail=RAIL, phases=phrases.PHASES, modules=modules)
    environment.filters.update(phrases.FILTERS | pictures.FILTERS)
    environment.filters["json"] = lambda value: json.dumps(value, default=str)
    return environment


ENVIRONMENT = _environment()


def render(request: Request, template: str, status: int = 200, **view: Any) -> HTMLResponse:
    """A page or a fragment. ``here`` marks the place in the rail."""
    first = "/" + request.scope["path"].split("/")[1]
    page = ENVIRONMENT.get_template(template).render(here=view.pop("here", first), **view)
    return HTMLResponse(page, status_code=status, headers={"Cache-Control": "no-store"})


def see(address: str) -> RedirectResponse:
    """After a form: show the result by GET."""
    return RedirectResponse(address, status_code=303)


def is_fragment(request: Request) -> bool:
    """Did a script on the page ask, which wants the moving part only?"""
    return request.headers.get("HX-Request") == "true"


def error_page(request: Request, error: AppError) -> HTMLResponse:
    response = render(request, "error.html", type(error).status, error=error, here="")
    response.headers.update(error.headers)
    return response


class PageRoute(APIRoute):
    """A route whose errors are pages instead of JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_kindly(request: Request) -> Response:
            try:
                return await handle(request)
            except AppError as error:
                return error_page(request, error)
            except RequestValidationError:
                return error_page(request, NotFound("This address does not lead anywhere."))
            except (OperationalError, InterfaceError):
                return error_page(request, Unavailable(headers={"Retry-After": "5"}))

        return handle_kindly


class KeptFiles(StaticFiles):
    """Files asked for by their hash never change; others are checked each time."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        kept = scope.get("query_string", b"").startswith(b"v=")
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if kept else "no-cache"
        return response
