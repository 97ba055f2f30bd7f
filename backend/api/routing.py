"""The one kind of route: strict query and body, idempotency keys, ETags, and ``Prefer: wait``, around every handler.

The handler runs between; its write session (``dependencies.writes``) commits after the response was rendered and
before it is sent, so the answer kept for an idempotency key is in the same transaction as the work.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.params import Form
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from backend.api.bodies import StudioRequest
from backend.api.dependencies import writes
from backend.api.revalidation import revalidated
from backend.api.waiting import WaitingResponse, wanted_wait_s
from backend.auth import current_owner
from backend.errors import BadRequest, Invalid
from backend.schemas.problems import FieldError
from backend.services import idempotency


class StudioRoute(APIRoute):
    """Use as ``route_class`` of every API router."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        needs = list(_with_dependencies(self.dependant))
        known = frozenset(parameter.alias for each in needs for parameter in each.query_params)
        has_body = self.body_field is not None
        is_form = any(isinstance(parameter.field_info, Form) for parameter in self.dependant.body_params)
        commits = any(each.call is writes for each in needs)

        async def guarded(plain: Request) -> Response:
            request = StudioRequest(plain.scope, plain.receive)
            _check_query(request, known)
            if has_body:
                await request.read(form=is_form)
            if request.method == "POST":
                return await _post(request, handle, commits)
            response = await handle(request)
            return revalidated(request, response) if request.method == "GET" else response

        return guarded


def _with_dependencies(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for each in dependant.dependencies:
        yield from _with_dependencies(each)


async def _post(
    request: StudioRequest, handle: Callable[[Request], Coroutine[Any, Any, Response]], commits: bool
) -> Response:
    """``commits``: the handler writes, so an idempotency key matters."""
    wait_s = wanted_wait_s(request.headers.get("prefer", ""))
    studio = request.app.state.studio
    key = _idempotency_key(request)
    if key is None or not commits:
        response = await handle(request)
    else:
        fingerprint = f"{request.method} {request.scope['path']} {request.digest}"
        claim = await run_in_threadpool(idempotency.claim, studio.database, current_owner(), key, fingerprint)
        if claim.answer is not None:
            response = _replayed(claim.answer)
        else:
            request.state.claim = claim
            try:
                response = await handle(request)
            except BaseException:
                await run_in_threadpool(idempotency.release, studio.database, claim)
                raise
            request.state.response = response
    if wait_s and response.status_code == 202:
        return WaitingResponse(response, studio, request.app.state.hub, wait_s)
    return response


def _idempotency_key(request: Request) -> str | None:
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    if len(values) > 1 or not 1 <= len(values[0]) <= 200 or not values[0].isprintable():
        raise BadRequest(
            "Send one Idempotency-Key of 1 to 200 printable characters.", code="bad-idempotency-key"
        )
    return values[0]


def _replayed(answer: idempotency.Answer) -> Response:
    headers = {**answer.headers, "Idempotent-Replayed": "true"}
    return Response(answer.body, answer.status, headers)


def _check_query(request: Request, known: frozenset[str]) -> None:
    """Unknown and repeated parameters are errors, as unknown fields of a body are."""
    seen: set[str] = set()
    found: list[FieldError] = []
    for name, value in request.query_params.multi_items():
        if name not in known:
            found.append(
                FieldError(pointer=f"/{name[:60]}", detail="There is no such parameter here; remove it.")
            )
        elif name in seen:
            found.append(FieldError(pointer=f"/{name}", detail="Give this parameter once."))
        elif "\x00" in value:
            found.append(FieldError(pointer=f"/{name}", detail="This value is not right."))
        seen.add(name)
    if found:
        raise Invalid(errors=found[:20])
