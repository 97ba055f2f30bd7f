"""A picture ``/images/{id}``, as the lightbox and as a page of its own: recipe, star, again, vary, delete."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import NotFound
from backend.models import Concept
from backend.schemas.generations import GenerationCreate, ImageRecipe
from backend.schemas.images import ImagePatch
from backend.services import concepts, generations, images
from backend.studio import Studio
from frontend.asking import Form, ItemId, Owner, Studied, text
from frontend.rendering import PageRoute, is_fragment, render, see

router = APIRouter(route_class=PageRoute)
VARIATIONS = 4
REPEATED = (
    "prompt", "negative_prompt", "base", "weights", "num_inference_steps", "guidance_scale", "scheduler", "width",
    "height", "base_share", "late_base_share", "region_passes", "attention_guidance", "attention_concepts",
)  # fmt: skip


@router.get("/images/{id}")
def show_image(request: Request, studio: Studied, owner: Owner, id: ItemId) -> Response:
    with studio.reading() as session:
        image = images.to_schema(session, images.get(session, owner, id))
        shown = [row for concept_id in image.concepts if (row := _concept(session, owner, concept_id))]
    template = "_image.html" if is_fragment(request) else "image.html"
    return render(request, template, image=image, concepts=shown, small=False, here="/gallery")


def _concept(session: Session, owner: str, concept_id: str) -> Concept | None:
    try:
        return concepts.get(session, owner, concept_id)
    except NotFound:
        return None


@router.post("/images/{id}/star")
def star(request: Request, studio: Studied, owner: Owner, id: ItemId, form: Form) -> Response:
    with studio.writing() as session:
        row = images.patch(session, owner, id, ImagePatch(starred=text(form, "starred") == "true"))
        image = images.to_schema(session, row)
    return (
        render(request, "_star.html", image=image, small=bool(text(form, "small")))
        if is_fragment(request)
        else see(f"/images/{id}")
    )


@router.post("/images/{id}/delete")
def delete_image(studio: Studied, owner: Owner, id: ItemId) -> Response:
    with studio.writing() as session:
        images.delete(session, owner, id)
    return see("/gallery")


@router.post("/images/{id}/again")
def draw_again(studio: Studied, owner: Owner, id: ItemId) -> Response:
    """The same recipe with the same seed: the same picture."""
    return _repeat(studio, owner, id, num_images=1, seed_after=0)


@router.post("/images/{id}/vary")
def vary(studio: Studied, owner: Owner, id: ItemId) -> Response:
    """The same recipe with the seeds that follow."""
    return _repeat(studio, owner, id, num_images=VARIATIONS, seed_after=1)


def _repeat(studio: Studio, owner: str, image_id: str, *, num_images: int, seed_after: int) -> Response:
    studio.storage.require_space()
    with studio.writing() as session:
        recipe = ImageRecipe.model_validate(images.get(session, owner, image_id).recipe)
        body = recipe.model_dump(include=set(REPEATED)) | {
            "regions": [region.model_dump(exclude={"text"}) for region in recipe.regions],
            "num_images": num_images,
            "seed": (recipe.seed + seed_after) % 2**32,
        }
        job = generations.start(
            session, owner, GenerationCreate.model_validate(body), studio.settings.max_queued_jobs
        )
    return see(f"/compose?job={job.id}")
