"""The composition root: settings in, application out. The only file that imports the pages."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from backend import logs, migrate
from backend.api import ROUTERS, docs, health, problems
from backend.api.guards import Guard
from backend.api.head import HeadAsGet
from backend.api.registry import COMPONENTS
from backend.auth import check_bind
from backend.events import Hub
from backend.maintenance import Maintenance
from backend.metrics import Metrics
from backend.schemas.version import VERSION
from backend.services import jobs
from backend.settings import Settings
from backend.studio import Studio
from frontend import mount

DESCRIPTION = (
    "Teach an image model your own concepts. Work answers 202 with a job; errors are application/problem+json; "
    "lists are keyset pages; every POST takes an Idempotency-Key."
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The whole web process. Raises ValueError for settings that would be unsafe."""
    settings = settings or Settings()
    check_bind(settings)
    logs.configure(settings)
    migrate.require_current(settings)
    studio = Studio.open(settings)
    metrics = Metrics()
    app = FastAPI(
        title="Moongate",
        version=VERSION,
        description=DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.studio = studio
    app.state.metrics = metrics
    app.state.hub = Hub(studio.database, jobs.events_after)
    problems.install(app)
    for router in (*ROUTERS, health.router, docs.router):
        app.include_router(router)
    mount(app, studio)
    app.add_middleware(HeadAsGet)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    _document_problems(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    hub: Hub = app.state.hub
    studio: Studio = app.state.studio
    maintenance = Maintenance(studio.settings, studio.database, studio.storage, studio.doorbell)
    maintenance.start()
    with _early_end(hub):
        try:
            yield
        finally:
            hub.close()
            await asyncio.to_thread(maintenance.stop)
            studio.close()


@contextlib.contextmanager
def _early_end(hub: Hub) -> Iterator[None]:
    """End event streams when the stop signal comes: the server waits for open connections before its lifespan ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(hub.close)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _document_problems(app: FastAPI) -> None:
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        problem = dict(COMPONENTS["Problem"])
        schemas.update(problem.pop("$defs", {}))
        schemas["Problem"] = problem
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
