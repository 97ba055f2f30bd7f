"""Merged weights ``/merge/{id}``: the report, what they were made of, and pictures before and after side by side."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import AppError, NotFound
from backend.models import ConceptWeights
from backend.schemas.merges.requests import MergeReport
from backend.services import merges, weights
from backend.studio import Studio
from frontend import merge_view, side_by_side
from frontend.asking import Form, ItemId, Owner, Studied, beside_fields, checked_id, text
from frontend.rendering import PageRoute, render, see

router = APIRouter(route_class=PageRoute)


@router.get("/merge/{id}")
def show_merged(request: Request, studio: Studied, owner: Owner, id: ItemId) -> Response:
    """The query's ``job`` values are the generations that are shown side by side."""
    shown = [checked_id(each) for each in request.query_params.getlist("job")[: side_by_side.MOST]]
    return _page(request, studio, owner, id, shown=shown)


@router.post("/merge/{id}")
def compare(request: Request, studio: Studied, owner: Owner, id: ItemId, form: Form) -> Response:
    try:
        studio.storage.require_space()
        with studio.writing() as session:
            row = _merged(weights.get(session, owner, id))
            asked = {name: text(form, name) for name in side_by_side.FIELDS}
            started = side_by_side.start(session, owner, row, asked, studio.settings.max_queued_jobs)
    except NotFound:
        raise
    except AppError as error:
        given = {name: text(form, name) for name in side_by_side.FIELDS}
        return _page(
            request, studio, owner, id, given=given, errors=beside_fields(error), status=error.status
        )
    return see(f"/merge/{id}?{'&'.join(f'job={job}' for job in started)}#side-by-side")


def _merged(row: ConceptWeights) -> ConceptWeights:
    """NotFound for weights that were not merged."""
    if not row.manifest.get("merge"):
        raise NotFound
    return row


def _page(
    request: Request,
    studio: Studio,
    owner: str,
    weights_id: str,
    *,
    shown: Sequence[str] = (),
    given: dict[str, str] | None = None,
    errors: dict[str, str] | None = None,
    status: int = 200,
) -> Response:
    with studio.reading() as session:
        row = _merged(weights.get(session, owner, weights_id))
        taught = merge_view.taught_by(session, owner, weights_id)
        told = row.report.get("merge")
        return render(
            request,
            "merged.html",
            status,
            here="/concepts",
            weights=weights.to_schema(session, row),
            concepts=taught,
            report=merge_view.of_report(MergeReport.model_validate(told), [each.name for each in taught])
            if told
            else None,
            parents=side_by_side.parents(session, owner, row),
            columns=side_by_side.columns(session, owner, row, shown),
            joint=merges.jointly_trained(session, owner, row),
            values=given or side_by_side.usual(session, owner, row, shown),
            errors=errors or {},
        )
