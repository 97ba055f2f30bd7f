"""Generated images."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Query, Request, Response

from backend.api.dependencies import Cursor, ItemId, Limit, Owner, Reads, Studied, Writes
from backend.api.files import file_of, send
from backend.api.registry import make_router, problems
from backend.api.revalidation import require_match
from backend.schemas.images import Image, ImagePatch
from backend.schemas.strict import Id, Page
from backend.services import images

router = make_router("images")
_STAR = {"star": {"summary": "Star it", "value": {"starred": True}}}


@router.get("/images", responses=problems())
def list_images(
    *,
    session: Reads,
    owner: Owner,
    concept: Annotated[Id | None, Query()] = None,
    weights: Annotated[Id | None, Query()] = None,
    job: Annotated[Id | None, Query()] = None,
    starred: Annotated[bool | None, Query()] = None,
    q: Annotated[str | None, Query(max_length=200, description="found literally in the prompt")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Image]:
    """Images, newest first, each with its whole recipe."""
    rows, after = images.page(
        session,
        owner,
        concept=concept,
        weights=weights,
        job=job,
        starred=starred,
        q=q,
        limit=limit,
        cursor=cursor,
    )
    return Page(items=images.to_schemas(session, rows), next=after)


@router.get("/images/{id}", responses=problems(404))
def get_image(image_id: ItemId, session: Reads, owner: Owner) -> Image:
    """An image with its recipe."""
    return images.to_schema(session, images.get(session, owner, image_id))


@router.get(
    "/images/{id}/file", response_class=Response, responses={200: file_of("image/png"), **problems(404)}
)
def get_image_file(
    image_id: ItemId, request: Request, session: Reads, owner: Owner, studio: Studied
) -> Response:
    """The PNG, recipe inside."""
    row = images.get(session, owner, image_id)
    name = f"{row.created_at:%Y-%m-%d}-{row.job_id[-6:]}-{row.index:02}-{row.seed}.png"
    path = studio.storage.path(row.storage_key)
    return send(request, path, media_type="image/png", sha256=row.sha256, name=name)


@router.get(
    "/images/{id}/thumbnail", response_class=Response, responses={200: file_of("image/webp"), **problems(404)}
)
def get_image_thumbnail(
    image_id: ItemId, request: Request, session: Reads, owner: Owner, studio: Studied
) -> Response:
    """A small WebP."""
    row = images.get(session, owner, image_id)
    path = studio.storage.path(row.thumbnail_key)
    return send(request, path, media_type="image/webp", sha256=f"{row.sha256}-thumbnail")


@router.patch("/images/{id}", responses=problems(404, 412, 413, 415))
def update_image(
    image_id: ItemId,
    body: Annotated[ImagePatch, Body(openapi_examples=_STAR)],
    request: Request,
    session: Writes,
    owner: Owner,
) -> Image:
    """Star or unstar; ``If-Match`` is respected."""
    require_match(request, images.to_schema(session, images.get(session, owner, image_id)))
    return images.to_schema(session, images.patch(session, owner, image_id, body))


@router.delete("/images/{id}", status_code=204, responses=problems(404))
def delete_image(image_id: ItemId, session: Writes, owner: Owner) -> None:
    """Delete an image and its files."""
    images.delete(session, owner, image_id)
