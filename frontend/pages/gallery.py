"""Gallery ``/gallery``: every picture, searched by prompt or concept, more as one scrolls."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from backend.services import concepts, images
from frontend.asking import Owner, Studied, checked_id
from frontend.rendering import PageRoute, is_fragment, render

router = APIRouter(route_class=PageRoute)
PER_PAGE = 48
MOST_CONCEPTS = 200


@router.get("/gallery")
def gallery(
    request: Request,
    studio: Studied,
    owner: Owner,
    *,
    q: Annotated[str, Query(max_length=200)] = "",
    concept: Annotated[str, Query(max_length=36)] = "",
    starred: Annotated[str, Query(max_length=5)] = "",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    filters = {"q": q.strip(), "concept": concept, "starred": "true" if starred == "true" else ""}
    with studio.reading() as session:
        rows, following = images.page(
            session,
            owner,
            q=filters["q"] or None,
            concept=checked_id(concept) if concept else None,
            starred=True if filters["starred"] else None,
            limit=PER_PAGE,
            cursor=cursor,
        )
        more = {name: value for name, value in filters.items() if value} | {"cursor": following}
        view: dict[str, Any] = {
            "images": images.to_schemas(session, rows),
            "more": f"/gallery?{urlencode(more)}" if following else None,
        }
        if is_fragment(request):
            return render(request, "_images.html", **view)
        known, _ = concepts.page(session, owner, limit=MOST_CONCEPTS)
        filtered = any(filters.values())
        return render(request, "gallery.html", concepts=known, filters=filters, filtered=filtered, **view)
