"""Concepts."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Query, Request, Response

from backend.api.dependencies import Cursor, ItemId, Limit, Owner, Reads, Writes
from backend.api.registry import make_router, problems
from backend.api.revalidation import require_match
from backend.schemas.concepts import Concept, ConceptCreate, ConceptPatch
from backend.schemas.strict import Page
from backend.services import concepts

router = make_router("concepts")
_CREATE = {
    "subject": {"summary": "A dog", "value": {"name": "Stark", "kind": "subject", "class_noun": "dog"}}
}
_PATCH = {"rename": {"summary": "Another name", "value": {"name": "Stark the second"}}}


@router.post("/concepts", status_code=201, responses=problems(409, 413, 415))
def create_concept(
    body: Annotated[ConceptCreate, Body(openapi_examples=_CREATE)],
    session: Writes,
    owner: Owner,
    response: Response,
) -> Concept:
    """A new concept, without photos. ``token`` defaults to a slug of the name and is written ``@token`` in prompts."""
    row = concepts.create(session, owner, body)
    response.headers["location"] = f"/api/v1/concepts/{row.id}"
    return concepts.to_schema(session, row)


@router.get("/concepts", responses=problems())
def list_concepts(session: Reads, owner: Owner, limit: Limit = 50, cursor: Cursor = None) -> Page[Concept]:
    """Concepts, newest first."""
    rows, after = concepts.page(session, owner, limit, cursor)
    return Page(items=concepts.to_schemas(session, rows), next=after)


@router.get("/concepts/{id}", responses=problems(404))
def get_concept(concept_id: ItemId, session: Reads, owner: Owner) -> Concept:
    """A concept with its photos and the versions of its weights."""
    return concepts.to_schema(session, concepts.get(session, owner, concept_id))


@router.patch("/concepts/{id}", responses=problems(404, 409, 412, 413, 415))
def update_concept(
    concept_id: ItemId,
    body: Annotated[ConceptPatch, Body(openapi_examples=_PATCH)],
    request: Request,
    session: Writes,
    owner: Owner,
) -> Concept:
    """Change the fields that are present; ``If-Match`` is respected."""
    require_match(request, concepts.to_schema(session, concepts.get(session, owner, concept_id)))
    return concepts.to_schema(session, concepts.patch(session, owner, concept_id, body))


@router.delete("/concepts/{id}", status_code=204, responses=problems(404, 409))
def delete_concept(
    concept_id: ItemId,
    session: Writes,
    owner: Owner,
    cascade: Annotated[
        bool, Query(description="also delete its weights, their pictures, and cancel its jobs")
    ] = False,
) -> None:
    """Delete a concept and its photos. 409 ``has-dependants`` with their ids unless ``cascade``."""
    concepts.delete(session, owner, concept_id, cascade)
