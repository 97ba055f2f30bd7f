"""Merge ``/merge``: concepts to choose, how they will go together, and the button that merges them."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import AppError, Conflict
from backend.services import merges
from backend.storage import Storage
from backend.studio import Studio
from frontend import merge_form, merge_view
from frontend.asking import Form, Owner, Studied
from frontend.method_fields import Given
from frontend.rendering import PageRoute, render, see

router = APIRouter(route_class=PageRoute)


@router.get("/merge")
def choose(request: Request, studio: Studied, owner: Owner) -> Response:
    """The query is the form: what is chosen, and its forecast where that is two concepts or more."""
    return _page(request, studio, owner, request.query_params, {})


@router.post("/merge")
def merge(request: Request, studio: Studied, owner: Owner, form: Form) -> Response:
    try:
        studio.storage.require_space()
        with studio.writing() as session:
            body = merge_form.wanted(session, owner, form)
            job = merges.start(session, studio.storage, owner, body, studio.settings.max_queued_jobs)
    except AppError as error:
        said = merge_form.beside(form, error)
        return _page(request, studio, owner, form, said, status=error.status)
    return see(f"/jobs/{job.id}")


def _page(
    request: Request,
    studio: Studio,
    owner: str,
    given: Given,
    errors: dict[str, str],
    *,
    status: int = 200,
) -> Response:
    with studio.reading() as session:
        form = merge_form.view(session, owner, given)
        forecast, unknown = None, ""
        if len(form.chosen) > 1 and not errors:
            forecast, unknown, errors = _forecast(session, studio.storage, owner, given)
        return render(
            request,
            "merge.html",
            status,
            here="/concepts",
            form=form,
            forecast=forecast,
            unknown=unknown,
            errors=errors,
            opened=any(key not in ("", "method") for key in errors),
        )


def _forecast(
    session: Session, storage: Storage, owner: str, given: Given
) -> tuple[merge_view.ForecastView | None, str, dict[str, str]]:
    """The forecast, or why there is none although they can be merged, or what is wrong with the choice."""
    try:
        told = merges.forecast(session, storage, owner, merge_form.wanted(session, owner, given))
    except Conflict as error:
        return None, error.detail, {}
    except AppError as error:
        return None, "", merge_form.beside(given, error)
    return merge_view.of_forecast(session, owner, told), "", {}
