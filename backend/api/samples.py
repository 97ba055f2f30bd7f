"""Sample photos that ship."""

from __future__ import annotations

import hashlib

from fastapi import Request, Response

from backend.api.dependencies import Owner, Studied, Writes
from backend.api.files import file_of, send
from backend.api.registry import make_router, problems
from backend.schemas.concepts import Concept
from backend.schemas.samples import SampleSetList
from backend.services import concepts, samples

router = make_router("samples")


@router.get("/samples", responses=problems())
def list_samples() -> SampleSetList:
    """Sets of photos of subjects that the shipped base model has never seen."""
    return SampleSetList(items=samples.sets())


@router.post("/samples/{slug}", status_code=201, responses=problems(404, 409, 507))
def create_sample_concept(
    slug: str, session: Writes, owner: Owner, studio: Studied, response: Response
) -> Concept:
    """A concept with the photos of a set."""
    row = samples.create_concept(session, studio.storage, owner, slug, studio.darkroom)
    response.headers["location"] = f"/api/v1/concepts/{row.id}"
    return concepts.to_schema(session, row)


@router.get(
    "/samples/{slug}/photos/{name}",
    response_class=Response,
    responses={200: file_of("image/webp"), **problems(404)},
)
def get_sample_photo(slug: str, name: str, request: Request) -> Response:
    """One photo of a set."""
    path = samples.photo_file(slug, name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return send(request, path, media_type="image/webp", sha256=digest)
