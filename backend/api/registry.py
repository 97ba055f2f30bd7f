"""Makes routers: one prefix, strict routes, operation ids like ``create_concept``, documented problems."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute

from backend.api.dependencies import owner_of
from backend.api.problems import MEDIA_TYPE
from backend.api.routing import StudioRoute
from backend.schemas.problems import Problem

PREFIX = "/api/v1"
_TITLES = {
    400: "The request cannot be read",
    403: "Not allowed from here",
    404: "Missing, deleted, or somebody else's",
    409: "Not possible in the present state",
    412: "It has changed in the meantime",
    413: "Too large",
    415: "This type is not accepted",
    422: "Some values are not right; `errors` names each",
    429: "Too many at once",
    503: "Something the studio needs is away; try again",
    507: "The disk is almost full",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route: what it may answer besides success, and 400, 422, 503 that every route may."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": _TITLES[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted({400, 422, 503, *statuses})
    }


def make_router(tag: str) -> APIRouter:
    """A router whose every route needs an owner."""

    def operation_id(route: APIRoute) -> str:
        return route.name

    return APIRouter(
        prefix=PREFIX,
        tags=[tag],
        route_class=StudioRoute,
        dependencies=[Depends(owner_of)],
        generate_unique_id_function=operation_id,
    )


COMPONENTS: dict[str, Any] = {
    "Problem": Problem.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
}
