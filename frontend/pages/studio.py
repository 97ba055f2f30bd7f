"""Studio ``/``: the newest concepts and images, or the three-step start of an empty installation."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from backend.services import bases, concepts, forecasts, images, samples
from frontend import job_view, phrases
from frontend.asking import Owner, Studied
from frontend.rendering import PageRoute, render

router = APIRouter(route_class=PageRoute)
NEWEST_CONCEPTS = 12
NEWEST_IMAGES = 24
START_PROMPTS = ("a photo of {} on the beach", "a photo of {} in the snow", "a pencil drawing of {} at night")


@router.get("/")
def studio(request: Request, studio: Studied, owner: Owner) -> Response:
    with studio.reading() as session:
        rows, _ = concepts.page(session, owner, limit=NEWEST_CONCEPTS)
        drawn, _ = images.page(session, owner, limit=NEWEST_IMAGES)
        known = bases.list_all(session)
        prompts = next((base.example_prompts[:3] for base in known if base.example_prompts), START_PROMPTS)
        usual_s = forecasts.usual_s(session, bases.likely(known), calibrate=studio.settings.calibrate)
        return render(
            request,
            "studio.html",
            concepts=concepts.to_schemas(session, rows),
            images=images.to_schemas(session, drawn),
            training=job_view.lessons(session, owner),
            samples=[one for one in samples.sets() if one.featured],
            prompts=[prompt.partition("{}")[::2] for prompt in prompts],
            forecast=usual_s and f"about {phrases.duration(usual_s)}",
        )
