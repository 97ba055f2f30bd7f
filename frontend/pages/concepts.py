"""Concepts ``/concepts`` and a concept ``/concepts/{id}``: photos, versions of weights, the form that trains."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import AppError
from backend.schemas.methods import CARDS
from backend.services import concepts, images, samples
from backend.studio import Studio
from frontend import job_view, smaller_form, training_form, version_view
from frontend.asking import Form, ItemId, Owner, Studied, beside_fields, text
from frontend.method_fields import Given
from frontend.rendering import PageRoute, render, see

router = APIRouter(route_class=PageRoute)
PER_PAGE = 60
PICTURES = 8


@router.get("/concepts")
def list_concepts(
    request: Request,
    studio: Studied,
    owner: Owner,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    with studio.reading() as session:
        rows, following = concepts.page(session, owner, limit=PER_PAGE, cursor=cursor)
        begun = {row.sample for row in rows}
        return render(
            request,
            "concepts.html",
            concepts=concepts.to_schemas(session, rows),
            training=job_view.lessons(session, owner),
            samples=[one for one in samples.sets() if one.slug not in begun],
            next=following,
        )


@router.get("/concepts/{id}")
def show_concept(request: Request, studio: Studied, owner: Owner, id: ItemId) -> Response:
    """The query may choose ``method``, ``preset`` and ``base`` of the training form."""
    said = {}
    if (method := request.query_params.get("method", "")) and method not in CARDS:
        said["method"] = "There is no such method; here is the usual one."
    return concept_page(request, studio, owner, id, errors=said)


def concept_page(
    request: Request,
    studio: Studio,
    owner: str,
    concept_id: str,
    *,
    errors: dict[str, str] | None = None,
    given: Given | None = None,
    smaller: dict[str, Any] | None = None,
    status: int = 200,
) -> Response:
    """The page of a concept, with what was wrong with a form on it. ``smaller``: id of a version, and errors and given
    values of its form.
    """
    with studio.reading() as session:
        concept = concepts.to_schema(session, concepts.get(session, owner, concept_id))
        drawn, _ = images.page(session, owner, concept=concept_id, limit=PICTURES)
        return render(
            request,
            "concept.html",
            status,
            concept=concept,
            job=job_view.lessons(session, owner).get(concept_id),
            images=images.to_schemas(session, drawn),
            versions=version_view.versions(session, studio.storage, owner, concept),
            smaller=smaller,
            criteria=smaller_form.CRITERIA,
            most_sites=smaller_form.MOST_SITES,
            compares=studio.settings.calibrate,
            errors=errors or {},
            **training_form.view(
                session,
                owner,
                concept,
                given or request.query_params,
                errors or {},
                calibrate=studio.settings.calibrate,
            ),
        )


@router.post("/concepts/{id}/delete")
def forget_concept(request: Request, studio: Studied, owner: Owner, id: ItemId, form: Form) -> Response:
    try:
        with studio.writing() as session:
            concepts.delete(session, owner, id, cascade=text(form, "cascade") == "true")
    except AppError as error:
        said = beside_fields(error)
        if error.code == "has-dependants":
            said = {"cascade": "Versions, pictures or jobs depend on it; they would be forgotten as well."}
        return concept_page(request, studio, owner, id, errors=said, status=error.status)
    return see("/concepts")
