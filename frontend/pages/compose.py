"""Compose ``/compose``: the prompt box, and the results of this visit, newest first."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import AppError, Invalid, NotFound
from backend.schemas.bases import BaseModelInfo, SamplingDefaults
from backend.schemas.concepts import Concept
from backend.schemas.generations import SCHEDULERS, GenerationCreate, ImageRecipe
from backend.schemas.images import Image
from backend.schemas.jobs import Job
from backend.services import bases, concepts, generations, images, jobs, prompts
from backend.services.box_layout import is_usual
from backend.studio import Studio
from frontend import gate_fields, job_view, pictures
from frontend.asking import Form, Owner, Studied, beside_fields, checked_id, filled, text, valid
from frontend.gate_fields import GateField
from frontend.rendering import PageRoute, render, see

router = APIRouter(route_class=PageRoute)
FIELDS = (
    "prompt", "negative_prompt", "base", "num_images", "seed", "num_inference_steps", "guidance_scale", "scheduler",
    "size", "regions", "region_passes", "base_share", "late_base_share", "attention_guidance", "attention_concepts",
    "check", "retry_until_present", "guide_missing",
)  # fmt: skip
AS_TYPED = tuple(name for name in FIELDS if name not in ("size", "regions", "attention_concepts"))
"""Fields that stand in the request under the same name."""
EDGES = ("x", "y", "width", "height")
REGION = (*EDGES, "prompt", "weights")
RESULTS = 8
MOST_CONCEPTS = 200


@dataclass(frozen=True)
class Place:
    """Where a picture stands or will stand; sizes as it is shown."""

    index: int
    image: Image | None
    width: int
    height: int


@dataclass(frozen=True)
class Result:
    """One generation with its pictures."""

    job: Job
    live: bool
    sentence: str
    seen: int
    places: list[Place]


@router.get("/compose")
def compose(
    request: Request,
    studio: Studied,
    owner: Owner,
    *,
    prompt: Annotated[str, Query(max_length=2000)] = "",
    job: Annotated[str, Query(max_length=36)] = "",
    image: Annotated[str, Query(alias="from", max_length=36)] = "",
    seed: Annotated[str, Query(max_length=10)] = "",
) -> Response:
    """``job`` shows that job first and fills the box from it; ``from`` fills it from a picture's recipe."""
    values = dict.fromkeys(FIELDS, "") | {"prompt": prompt}
    with studio.reading() as session:
        request_of: dict[str, Any] = {}
        if job:
            request_of = jobs.get(session, owner, checked_id(job)).request
        elif image:
            recipe = ImageRecipe.model_validate(images.get(session, owner, checked_id(image)).recipe)
            request_of = recipe.model_dump(exclude=set() if seed else {"seed"})
        values |= _from_request(request_of)
        gates = gate_fields.offered(session, owner, _known(session, owner), values["base"])
        values |= gate_fields.values(gates, request_of.get("weights") or ())
    return _page(request, studio, owner, values, {}, first=job)


def _from_request(request: dict[str, Any]) -> dict[str, str]:
    """Values of the form from a request or a recipe."""
    usual = {name: GenerationCreate.model_fields[name].default for name in AS_TYPED}
    values = {name: str(request[name]) for name in AS_TYPED if request.get(name) not in (None, usual[name])}
    if request.get("late_base_share") == request.get("base_share"):
        values.pop("late_base_share", None)
    if regions := request.get("regions"):
        drawn = [{name: region[name] for name in REGION if region.get(name)} for region in regions]
        values["regions"] = json.dumps([{"x": 0, "y": 0, **region} for region in drawn])
        edges = [tuple(region[side] for side in EDGES) for region in regions]
        if values.get("region_passes") == ("one" if is_usual(edges) else "each"):
            del values["region_passes"]  # boxes that are moved get what they need then
    else:
        values.pop("region_passes", None)
    if attended := request.get("attention_concepts"):
        values["attention_concepts"] = " ".join(attended)
    if request.get("width") and request.get("height"):
        values["size"] = f"{request['width']}x{request['height']}"
    return values


@router.post("/compose")
def draw(request: Request, studio: Studied, owner: Owner, form: Form) -> Response:
    with studio.reading() as session:
        gates = gate_fields.offered(session, owner, _known(session, owner), text(form, "base"))
    try:
        body = valid(GenerationCreate, _wanted(form, gates))
        studio.storage.require_space()
        with studio.writing() as session:
            job = generations.start(session, owner, body, studio.settings.max_queued_jobs)
    except AppError as error:
        values = {name: text(form, name) for name in FIELDS} | gate_fields.typed(form, gates)
        return _page(request, studio, owner, values, _told(error), status=error.status)
    return see(f"/compose?job={job.id}")


def _told(error: AppError) -> dict[str, str]:
    """Sentences by field; what is wrong with a box names it."""
    said = beside_fields(error)
    for wrong in error.errors:
        if found := re.match(r"/regions/(\d+)", wrong.pointer):
            said["regions"] = f"Box {int(found[1]) + 1}: {wrong.detail}"
            break
        if re.match(r"/weights/\d+/gate", wrong.pointer):
            said["weights"] = f"Gate: {wrong.detail}"
    return said


def _wanted(form: Form, gates: list[GateField]) -> dict[str, Any]:
    wanted: dict[str, Any] = filled(form, AS_TYPED)
    wanted["prompt"] = text(form, "prompt")
    if drawn := text(form, "regions"):
        try:
            wanted["regions"] = json.loads(drawn)
        except ValueError:
            raise Invalid.at("/regions", "The boxes cannot be read. Draw them again.") from None
    named = prompts.tokens(f"{wanted['prompt']} {drawn}")  # of the boxes too, whatever else their JSON says
    if weights := gate_fields.chosen(form, gates, named):
        wanted["weights"] = weights
    if attended := text(form, "attention_concepts"):
        # Without guidance there is nobody for whom it could be meant.
        wanted |= {"attention_concepts": attended.split()} if "attention_guidance" in wanted else {}
    width, cross, height = text(form, "size").partition("x")
    return wanted | ({"width": width, "height": height} if cross else {})


def _page(
    request: Request,
    studio: Studio,
    owner: str,
    values: dict[str, str],
    errors: dict[str, str],
    *,
    first: str = "",
    status: int = 200,
) -> Response:
    with studio.reading() as session:
        known = bases.list_all(session)
        base = next((one for one in known if one.id == values["base"]), known[0] if known else None)
        example = base.example_prompts[0] if base and base.example_prompts else "a photo of {} on the beach"
        known_concepts = _known(session, owner)
        completions = _completions(session, owner, known_concepts)
        gates = gate_fields.offered(session, owner, known_concepts, values["base"])
        taught = f"@{completions[0]['token']}" if completions else "a dog"
        return render(
            request,
            "compose.html",
            status,
            values=values,
            errors=errors,
            bases=known,
            defaults=base.defaults if base else SamplingDefaults(),
            sizes=_sizes(base),
            schedulers=SCHEDULERS,
            completions=completions,
            gates=gates,
            gates_given=any(values.get(field.name(part)) for field in gates for part in gate_fields.PARTS),
            attended=[one.token for one in known_concepts if one.id in values["attention_concepts"].split()],
            example=example.replace("{}", taught),
            results=_results(session, owner, first),
        )


def _known(session: Session, owner: str) -> list[Concept]:
    """The owner's concepts, newest first."""
    rows, _ = concepts.page(session, owner, limit=MOST_CONCEPTS)
    return concepts.to_schemas(session, rows)


def _completions(session: Session, owner: str, known: list[Concept]) -> list[dict[str, str]]:
    """Concepts that can stand in a prompt: those with weights, and those that are being taught now."""
    lessons = job_view.lessons(session, owner)
    return [
        {
            "token": concept.token,
            "name": concept.name,
            "picture": concept.picture_url or "",
        }
        for concept in known
        if concept.weights or concept.id in lessons
    ]


def _sizes(base: BaseModelInfo | None) -> list[dict[str, str]]:
    """The base's own square first, then wider and taller."""
    if base is None:
        return [{"value": "", "title": "of the base"}]
    side, step = base.resolution, base.size_multiple
    longer = min(base.max_size, side * 3 // 2 // step * step)
    shapes = [(side, side)] + ([(longer, side), (side, longer)] if longer > side else [])
    return [{"value": f"{width}x{height}", "title": f"{width} × {height}"} for width, height in shapes]


def _results(session: Session, owner: str, first: str) -> list[Result]:
    """The newest generations; the one that was asked for comes first."""
    rows, _ = jobs.page(session, owner, kind="generate", limit=RESULTS)
    if first and first not in {row.id for row in rows}:
        with suppress(NotFound):
            rows = [jobs.get(session, owner, first), *rows]
    rows.sort(key=lambda row: row.id != first)
    return [result_of(session, owner, jobs.to_schema(session, row)) for row in rows]


def result_of(session: Session, owner: str, job: Job) -> Result:
    """A generation with its pictures, and places for those to come."""
    drawn, _ = images.page(session, owner, job=job.id, limit=64)
    by_index = {image.index: image for image in images.to_schemas(session, drawn)}
    live = job_view.is_live(job)
    width, height = pictures.size_in_grid(*_asked_size(session, job))
    wanted = range(int(job.request.get("num_images", 4))) if live else sorted(by_index)
    return Result(
        job=job,
        live=live,
        sentence=job_view.sentence(job),
        seen=job_view.History(session, owner, job).seen,
        places=[Place(index, by_index.get(index), width, height) for index in wanted],
    )


def _asked_size(session: Session, job: Job) -> tuple[int, int]:
    """The size of the pictures to come."""
    side = next((base.resolution for base in bases.list_all(session)), 64)
    return int(job.request.get("width") or side), int(job.request.get("height") or side)
