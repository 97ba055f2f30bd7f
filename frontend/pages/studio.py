"""Studio ``/``: the newest concepts and images, or the three-step start of an empty installation."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from frontend.rendering import PageRoute, render

router = APIRouter(route_class=PageRoute)


@router.get("/")
def studio(request: Request) -> Response:
    return render(request, "studio.html")
