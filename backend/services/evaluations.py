"""Evaluations: weights and the photos they are compared with become a pinned spec and a job; reports are rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from backend.errors import Invalid, NotFound
from backend.models import Concept, ConceptWeights, Evaluation, EvaluationWeights, Job, WeightsConcept
from backend.schemas import evaluations as schemas
from backend.schemas.bases import BaseModelInfo
from backend.schemas.evaluations import (
    MIN_PROMPTS,
    PROMPTS,
    STYLE_NOUN,
    STYLE_PROMPTS,
    EvaluateSpec,
    EvaluationCreate,
    EvaluationReport,
)
from backend.schemas.generations import PinnedWeights
from backend.schemas.trainings import PinnedConcept, PinnedFile
from backend.services import bases, jobs, mixing, owned, paging, photos, prompts

QUEUE = "train_any"
_PLACE = "{}"


def start(session: Session, owner_id: str, body: EvaluationCreate, max_queued_jobs: int = 200) -> Job:
    """Pin everything the report depends on and enqueue it. NotFound for foreign weights, Invalid otherwise."""
    spec = pin(session, owner_id, body)
    return jobs.enqueue(
        session,
        owner_id=owner_id,
        kind="evaluate",
        queue=QUEUE,
        request=body.model_dump(mode="json"),
        spec=spec,
        base=spec.base,
        base_hash=spec.base_hash,
        max_queued_jobs=max_queued_jobs,
    )


def pin(session: Session, owner_id: str, body: EvaluationCreate) -> EvaluateSpec:
    """The spec of a request."""
    if len(set(body.weights)) < len(body.weights):
        raise Invalid.at("/weights", "The same weights are named twice.")
    rows = [owned.get(session, ConceptWeights, owner_id, weights_id) for weights_id in body.weights]
    if len({row.base for row in rows}) > 1:
        raise Invalid.at(
            "/weights", "Evaluate weights of one base model at a time: their numbers share its anchors.",
            code="other-base",
        )  # fmt: skip
    base = bases.choose(session, rows[0].base, "/weights")
    if any(row.base_hash != base.hash for row in rows):
        raise Invalid.at(
            "/weights", "The base model has changed since these weights were learned.", code="base-changed"
        )
    if base.judges is None:
        raise Invalid.at(
            "/weights",
            "Nobody judges pictures of this base model. An administrator can register judges (MOONGATE_JUDGES).",
            code="no-judges",
        )
    weights = [_weights(session, row, index) for index, row in enumerate(rows)]
    concepts = _concepts(session, owner_id, [each for one in weights for each in one.concepts])
    subject, style = _prompts(base, body, {concept.kind for concept in concepts})
    _require_fit(session, base, rows, concepts, {"subject": subject, "style": style})
    return EvaluateSpec(
        base=base.id,
        base_hash=base.hash,
        judges=base.judges,
        weights=weights,
        concepts=concepts,
        prompts=subject,
        style_prompts=style,
        num_images=body.num_images,
    )


def get(session: Session, owner_id: str, evaluation_id: str) -> Evaluation:
    """The owner's evaluation. NotFound otherwise, and when none of its weights are left."""
    row = owned.get(session, Evaluation, owner_id, evaluation_id)
    if session.scalar(_living(owner_id).where(Evaluation.id == row.id)) is None:
        raise NotFound
    return row


def page(
    session: Session,
    owner_id: str,
    limit: int = 50,
    cursor: str | None = None,
    weights: str | None = None,
) -> tuple[list[Evaluation], str | None]:
    """Evaluations newest first, and the cursor of the next page."""
    query = _living(owner_id)
    if weights is not None:
        query = query.where(
            Evaluation.id.in_(
                select(EvaluationWeights.evaluation_id).where(EvaluationWeights.weights_id == weights)
            )
        )
    return paging.take(session, query, Evaluation.id, limit, cursor)


def to_schema(session: Session, row: Evaluation) -> schemas.Evaluation:
    """The evaluation as the API shows it."""
    return to_schemas(session, [row])[0]


def to_schemas(session: Session, rows: Sequence[Evaluation]) -> list[schemas.Evaluation]:
    """Several evaluations."""
    return [
        schemas.Evaluation(
            id=row.id,
            weights=list(dict.fromkeys(each.weights for each in report.concepts)),
            base=row.base,
            base_hash=row.base_hash,
            report=report,
            job=row.job_id,
            created_at=row.created_at,
        )
        for row in rows
        for report in [EvaluationReport.model_validate(row.report)]
    ]


def _living(owner_id: str) -> Select[Evaluation]:
    """Evaluations of which some weights are left."""
    about = (
        select(EvaluationWeights.evaluation_id)
        .join(ConceptWeights, ConceptWeights.id == EvaluationWeights.weights_id)
        .where(ConceptWeights.deleted_at.is_(None))
    )
    return select(Evaluation).where(Evaluation.owner_id == owner_id, Evaluation.id.in_(about))


def _weights(session: Session, row: ConceptWeights, index: int) -> PinnedWeights:
    links = session.scalars(
        select(WeightsConcept)
        .join(Concept, Concept.id == WeightsConcept.concept_id)
        .where(WeightsConcept.weights_id == row.id, Concept.deleted_at.is_(None))
        .order_by(WeightsConcept.token)
    ).all()
    if not links:
        raise Invalid.at(
            f"/weights/{index}", "The concept of these weights has been forgotten.", code="no-concept"
        )
    return PinnedWeights(
        file=PinnedFile(id=row.id, storage_key=row.storage_key, sha256=row.sha256),
        scale=mixing.own_scale(row),
        tokens=[link.token for link in links],
        concepts=[link.concept_id for link in links],
    )


def _concepts(session: Session, owner_id: str, ids: Iterable[str]) -> list[PinnedConcept]:
    found = []
    for concept_id in dict.fromkeys(ids):
        row = owned.get(session, Concept, owner_id, concept_id)
        pictures = photos.compared_with(session, row, "/weights", "an evaluation")
        if row.kind == "subject" and not row.class_noun:
            raise Invalid.at(
                "/weights", f"{row.name} has no class noun, so there is nothing to compare with.", code="no-class-noun"
            )  # fmt: skip
        found.append(
            PinnedConcept.model_validate(
                {
                    "id": row.id,
                    "token": row.token,
                    "class_noun": row.class_noun,
                    "kind": row.kind,
                    "photos": photos.pinned(pictures),
                }
            )
        )
    return found


def _prompts(base: BaseModelInfo, body: EvaluationCreate, kinds: set[str]) -> tuple[list[str], list[str]]:
    """For subjects and for styles; empty for a kind that is not among ``kinds``."""
    if body.prompts:
        for index, prompt in enumerate(body.prompts):
            if prompt.count(_PLACE) != 1 or prompts.tokens(prompt):
                raise Invalid.at(
                    f"/prompts/{index}",
                    "Write one {} where the concept stands, and no token.",
                    code="bad-evaluation-prompt",
                )
        if len(set(body.prompts)) < max(MIN_PROMPTS, len(body.prompts)):
            raise Invalid.at(
                "/prompts", "Name two or more different prompts, or none.", code="too-few-prompts"
            )
        if len(kinds) > 1:
            raise Invalid.at(
                "/prompts", "Subjects and styles need other prompts. Evaluate them one by one.", code="mixed-kinds"
            )  # fmt: skip
        asked = [prompts.normal(prompt) for prompt in body.prompts]
        return (asked, []) if "subject" in kinds else ([], asked)
    examples = [example for example in base.example_prompts if example.count(_PLACE) == 1]
    subject = examples if len(examples) >= MIN_PROMPTS else list(PROMPTS)
    return subject if "subject" in kinds else [], list(STYLE_PROMPTS) if "style" in kinds else []


def _require_fit(
    session: Session,
    base: BaseModelInfo,
    rows: Sequence[ConceptWeights],
    concepts: Sequence[PinnedConcept],
    asked: dict[str, list[str]],
) -> None:
    """The longest wording of every prompt, with the placeholder's vectors, fits the text encoder."""
    kinds = {concept.id: concept for concept in concepts}
    for row in rows:
        links = session.scalars(select(WeightsConcept).where(WeightsConcept.weights_id == row.id))
        for link in (link for link in links if link.concept_id in kinds):
            concept = kinds[link.concept_id]
            noun = concept.class_noun or (STYLE_NOUN if concept.kind == "style" else "")
            vectors = {link.token: prompts.placeholder(row, link.token).vectors}
            for index, prompt in enumerate(asked[concept.kind]):
                text = prompt.replace(_PLACE, f"<{link.token}> {noun}".rstrip())
                prompts.require_fit(session, base.id, text, vectors, f"/prompts/{index}")
