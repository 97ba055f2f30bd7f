"""How results appear: one fenced commit each, after the files stand in storage (reliability 2.4, T8).

Nothing is published once a cancel was asked for: the commit's guard says so, so the first commit wins. Every function
returns False or None when the attempt no longer holds the job; the caller then deletes the files it has stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.failpoints import fp
from backend.identifiers import new_id
from backend.models import (
    Artifact,
    Concept,
    ConceptWeights,
    Evaluation,
    EvaluationWeights,
    Image,
    ImageWeights,
    Job,
    JobEvent,
    WeightsConcept,
)
from backend.schemas.evaluations import EvaluationReport
from backend.schemas.executor import Unit
from backend.schemas.generations import ImageRecipe
from backend.schemas.trainings import PinnedConcept
from backend.schemas.weights import WeightsManifest
from backend.services import job_events, jobs
from backend.services.job_events import Event
from backend.storage import Stored


@dataclass(frozen=True)
class NewImage:
    """A verified picture and its thumbnail, both in storage."""

    index: int
    recipe: ImageRecipe
    file: Stored
    thumbnail: Stored


@dataclass(frozen=True)
class NewWeights:
    """Verified weights in storage. ``concepts`` are what they teach; ``sketch`` is what forecasts of merges compare,
    empty where there is nothing to compare.
    """

    manifest: WeightsManifest
    analysis: dict[str, Any] | None
    report: dict[str, Any]
    file: Stored
    concepts: list[PinnedConcept]
    sketch: dict[str, Any] | None = None


def image_indices(session: Session, job_id: str) -> list[int]:
    """Images of the job that are published already; a resumed batch skips them."""
    return list(session.scalars(select(Image.index).where(Image.job_id == job_id).order_by(Image.index)))


def publish_image(session: Session, unit: Unit, new: NewImage) -> str | None:
    """Insert one image with its event; its id, or None when nothing may be published any more."""
    image_id, recipe = new_id(), new.recipe
    url = f"/api/v1/images/{image_id}"
    shown = {"id": image_id, "index": new.index, "url": f"{url}/file", "thumbnail_url": f"{url}/thumbnail"}
    if not job_events.append(
        session, unit.job, [Event("image", shown)], Job.cancel_requested_at.is_(None), fence=unit.fence
    ):
        return None
    job = session.get_one(Job, unit.job)
    session.add(
        Image(
            id=image_id, owner_id=job.owner_id, job_id=job.id, index=new.index, seed=recipe.seed,
            prompt=recipe.prompt, recipe=recipe.model_dump(mode="json"), width=recipe.width, height=recipe.height,
            sha256=new.file.sha256, storage_key=new.file.key, thumbnail_key=new.thumbnail.key, starred=False,
        )
    )  # fmt: skip
    session.flush()
    used = [*recipe.weights, *(choice for region in recipe.regions for choice in region.weights)]
    for weights_id in dict.fromkeys(choice.id for choice in used):
        session.add(ImageWeights(image_id=image_id, weights_id=weights_id, owner_id=job.owner_id))
    session.add(_artifact(job, unit, "image", new.file, "image/png"))
    session.add(_artifact(job, unit, "thumbnail", new.thumbnail, "image/webp"))
    return image_id


def publish_preview(
    session: Session, unit: Unit, file: Stored, *, step: int, index: int, prompt: str
) -> bool:
    """Insert one preview picture with its event. False for one that an earlier attempt showed already."""
    job = session.get(Job, unit.job)
    earlier = list(
        session.scalars(select(JobEvent.data).where(JobEvent.job_id == unit.job, JobEvent.type == "preview"))
    )
    if job is None or any((data["step"], data["index"]) == (step, index) for data in earlier):
        return False
    url = f"/api/v1/jobs/{unit.job}/previews/{len(earlier)}"
    shown = Event("preview", {"step": step, "index": index, "prompt": prompt, "url": url})
    if not job_events.append(session, unit.job, [shown], Job.cancel_requested_at.is_(None), fence=unit.fence):
        return False
    session.add(_artifact(job, unit, "preview", file, "image/png"))
    return True


def succeed(
    session: Session,
    unit: Unit,
    *,
    result: dict[str, Any],
    metrics: dict[str, Any],
    weights: NewWeights | None = None,
    evaluation: EvaluationReport | None = None,
) -> bool:
    """T8: the job's end, what it made and its artifacts, in one transaction, unless a cancel came first."""
    job = session.get(Job, unit.job, populate_existing=True)
    if job is None:
        return False
    weights_id = new_id()
    if weights is not None:
        result = {**result, "weights": weights_id}
    evaluation_id = new_id()
    if evaluation is not None:
        result = {**result, "evaluation": evaluation_id, "report": evaluation.model_dump(mode="json")}
    if job.kind == "generate":
        images = select(Image.id).where(Image.job_id == job.id).order_by(Image.index)
        result = {**result, "images": list(session.scalars(images))}
    fp("publish.before_commit")
    done = jobs.transition(
        session, unit.job, "succeeded", Job.fence == unit.fence, Job.cancel_requested_at.is_(None),
        expected=("running",), result=result, metrics={**job.metrics, **metrics}, step=Job.total_steps,
    )  # fmt: skip
    if done and weights is not None:
        _insert_weights(session, unit, job, weights_id, weights)
    if done and evaluation is not None:
        _insert_evaluation(session, job, evaluation_id, evaluation)
    return done


def _insert_evaluation(session: Session, job: Job, evaluation_id: str, report: EvaluationReport) -> None:
    session.add(
        Evaluation(
            id=evaluation_id, owner_id=job.owner_id, job_id=job.id, base=job.base, base_hash=job.base_hash,
            report=report.model_dump(mode="json"),
        )
    )  # fmt: skip
    session.flush()
    for weights_id in {each.weights for each in report.concepts}:
        session.add(
            EvaluationWeights(evaluation_id=evaluation_id, weights_id=weights_id, owner_id=job.owner_id)
        )


def _insert_weights(session: Session, unit: Unit, job: Job, weights_id: str, new: NewWeights) -> None:
    manifest = new.manifest
    session.add(
        ConceptWeights(
            id=weights_id, owner_id=job.owner_id, job_id=job.id, method=manifest.method, side=manifest.side,
            base=manifest.base, base_hash=manifest.base_hash, manifest=manifest.model_dump(mode="json"),
            analysis=new.analysis, report=new.report, sketch=new.sketch, parents=manifest.parents,
            size_bytes=new.file.size_bytes, sha256=new.file.sha256, storage_key=new.file.key,
        )
    )  # fmt: skip
    session.flush()
    taught = {pinned.id: pinned.token for pinned in new.concepts}
    for concept_id in session.scalars(select(Concept.id).where(Concept.id.in_(taught))):
        session.add(
            WeightsConcept(
                weights_id=weights_id, concept_id=concept_id, owner_id=job.owner_id, token=taught[concept_id]
            )
        )
    session.add(_artifact(job, unit, "weights", new.file, "application/octet-stream"))


def _artifact(job: Job, unit: Unit, role: str, file: Stored, media_type: str) -> Artifact:
    return Artifact(
        owner_id=job.owner_id, job_id=job.id, fence=unit.fence, role=role, sha256=file.sha256,
        size_bytes=file.size_bytes, media_type=media_type, storage_key=file.key,
    )  # fmt: skip
