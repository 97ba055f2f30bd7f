"""Generations: a prompt becomes a pinned spec and a job. What the weights are follows from the tokens."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import Concept, ConceptWeights, Job, WeightsConcept
from backend.schemas.bases import BaseModelInfo
from backend.schemas.generations import (
    SCHEDULERS,
    ActingWeights,
    Gate,
    GenerateSpec,
    GenerationCreate,
    PinnedWeights,
    WeightsChoice,
)
from backend.schemas.trainings import PinnedFile
from backend.services import (
    attention_guidance,
    bases,
    jobs,
    mixing,
    owned,
    presence,
    prompts,
    region_texts,
    regions,
)
from backend.services.prompts import Placeholder
from backend.services.regions import Area, Resolved

QUEUE = "gen_any"
GATED = frozenset({"perfusion"})
"""Methods whose gate may be another one from picture to picture."""


def start(session: Session, owner_id: str, body: GenerationCreate, max_queued_jobs: int = 200) -> Job:
    """Pin everything the pictures depend on and enqueue it. NotFound for foreign weights, Invalid otherwise.

    Where a concept of the prompt is being taught just now, the job is blocked until that is done.
    """
    spec, needed = pin(session, owner_id, body)
    return jobs.enqueue(
        session,
        owner_id=owner_id,
        kind="generate",
        queue=QUEUE,
        request=body.model_dump(mode="json"),
        spec=spec,
        base=spec.base,
        base_hash=spec.base_hash,
        batch_key=batch_key(spec, _sides(session, spec)),
        needs=[job.id for job in needed],
        max_queued_jobs=max_queued_jobs,
    )


def batch_key(spec: GenerateSpec, sides: Collection[str]) -> str | None:
    """Jobs with the same key can share calls of the denoiser; None where weights must be installed for it, or its
    pictures are looked at one by one.
    """
    if "weights" in sides or spec.check is not None:
        return None
    guided = "guided" if spec.guidance_scale != 1.0 else "plain"
    size = f"{spec.width}x{spec.height}"
    return f"{spec.base_hash}:{size}:{spec.scheduler}:{spec.num_inference_steps}:{guided}"


def _sides(session: Session, spec: GenerateSpec) -> set[str]:
    used = [weights.file.id for weights in spec.weights]
    return set(session.scalars(select(ConceptWeights.side).where(ConceptWeights.id.in_(used))))


def completed(session: Session, job: Job, needed: list[Job]) -> dict[str, Any]:
    """Columns of a blocked generation when the trainings it waited for have succeeded: its spec with their weights.

    Invalid when the weights are gone already, or the prompt does not fit with what they teach.
    """
    spec = GenerateSpec.model_validate(job.spec)
    made = select(ConceptWeights).where(
        ConceptWeights.job_id.in_([each.id for each in needed]), ConceptWeights.deleted_at.is_(None)
    )
    rows = list(session.scalars(made.order_by(ConceptWeights.id)))
    if len(rows) < len(needed):
        raise Invalid("What was learned for these pictures has been deleted meanwhile.", code="input_invalid")
    alone = _alone(spec.prompt, *(each.prompt for each in (spec.layout.regions if spec.layout else ())))
    added = [pinned(session, row, _scale(row, alone)) for row in rows]
    layout = regions.with_weights(spec.layout, spec.text, added)
    spec = spec.model_copy(update={"weights": [*spec.weights, *added], "layout": layout})
    used = [each.file.id for each in spec.weights]
    manifests = session.scalars(select(ConceptWeights.manifest).where(ConceptWeights.id.in_(used)))
    vectors = {taught["token"]: int(taught["vectors"]) for each in manifests for taught in each["tokens"]}
    for text in (spec.text, *(each.text for each in (layout.regions if layout else ()))):
        prompts.require_fit(session, spec.base, text, vectors)
    return {**jobs.pinned(spec), "batch_key": batch_key(spec, _sides(session, spec))}


def pin(session: Session, owner_id: str, body: GenerationCreate) -> tuple[GenerateSpec, list[Job]]:
    """The spec of a request, and the trainings whose weights it lacks yet."""
    if not body.prompt:
        raise Invalid.at("/prompt", "Write what the picture should show.", code="empty-prompt")
    prompt, negative = prompts.normal(body.prompt), prompts.normal(body.negative_prompt)
    areas = regions.checked(body)
    inside = {name for area in areas for name in area.names}
    names = [name for name in prompts.tokens(prompt) if name not in inside]
    alone = _alone(prompt, *(area.prompt for area in areas))
    asked = _chosen(session, owner_id, body.weights or [], "", alone)
    own = [_chosen(session, owner_id, area.asked.weights or [], area.pointer, alone) for area in areas]
    everyone = [*asked, *(each for weights in own for each in weights)]
    base = _base(session, owner_id, body, [row for row, _ in everyone], [*names, *sorted(inside)])
    whole = asked if not areas else [each for each in asked if _acts(session, each[0], names, inside)]
    known, chosen, needed = _teachers(session, owner_id, names, base, whole, alone=alone)
    resolved = [
        _resolved(session, owner_id, base, area, weights or asked, alone=alone)
        for area, weights in zip(areas, own, strict=True)
    ]
    if prompts.tokens(negative):
        raise Invalid.at("/negative_prompt", "Tokens belong into the prompt.", code="token-in-negative")
    text, layout = prompts.resolved(prompt, known), None
    if resolved:
        built = regions.texts(prompt, [each for each, _, _ in resolved], known, regions.passes(body))
        text = built.whole
        layout = regions.layout(body, [each for each, _, _ in resolved], built, [one for _, one in chosen])
        for (each, _, _), own_text in zip(resolved, built.regions, strict=True):
            vectors = {taught.token: taught.vectors for taught in each.known.values()}
            prompts.require_fit(session, base.id, own_text, vectors, f"{each.area.pointer}/prompt")
    prompts.require_fit(session, base.id, text, {each.token: each.vectors for each in known.values()})
    prompts.require_fit(session, base.id, negative, {}, "/negative_prompt")
    used = {
        row.id: (row, choice)
        for row, choice in [*chosen, *(each for _, rows, _ in resolved for each in rows)]
    }
    _require_unchanged(session, base, [row for row, _ in used.values()])
    awaited = {job.id: job for job in [*needed, *(job for _, _, jobs_ in resolved for job in jobs_)]}
    attention_guidance.require_someone(session, owner_id, body, names)
    width, height = _size(body, base)
    defaults = base.defaults
    scheduler = body.scheduler or defaults.scheduler
    if scheduler not in {each.name for each in SCHEDULERS}:
        raise Invalid.at("/scheduler", "There is no such scheduler.", code="unknown-scheduler")
    spec = GenerateSpec(
        prompt=prompt,
        text=text,
        negative_prompt=negative,
        base=base.id,
        base_hash=base.hash,
        weights=[pinned(session, row, choice.scale, choice.gate) for row, choice in used.values()],
        num_images=body.num_images,
        seed=body.seed if body.seed is not None else random.getrandbits(32),
        num_inference_steps=body.num_inference_steps or defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale if body.guidance_scale is None else body.guidance_scale,
        scheduler=scheduler,
        width=width,
        height=height,
        attention_guidance=body.attention_guidance,
        attention_concepts=body.attention_concepts,
        layout=layout,
        check=presence.pinned(
            session,
            owner_id,
            body,
            base,
            [*names, *sorted(inside)],
            areas=[area.names for area in areas],
            plain_text=region_texts.plain(text, known),
        ),
    )
    return spec, [awaited[job_id] for job_id in sorted(awaited)]


Chosen = list[tuple[ConceptWeights, ActingWeights]]


def _chosen(
    session: Session, owner_id: str, choices: list[WeightsChoice], pointer: str, alone: bool
) -> Chosen:
    if len({choice.id for choice in choices}) < len(choices):
        raise Invalid.at(f"{pointer}/weights", "The same weights are named twice.")
    rows = [owned.get(session, ConceptWeights, owner_id, choice.id) for choice in choices]
    for place, (row, choice) in enumerate(zip(rows, choices, strict=True)):
        if choice.gate is not None and row.method not in GATED:
            raise Invalid.at(
                f"{pointer}/weights/{place}/gate", "The method of these weights has no gate.", code="no-gate"
            )
    return [
        (row, ActingWeights(id=row.id, scale=_scale(row, alone, choice.scale), gate=choice.gate))
        for row, choice in zip(rows, choices, strict=True)
    ]


def _alone(*said: str) -> bool:
    """Whether the prompt and those of its boxes name one concept at most."""
    return len({name for prompt in said for name in prompts.tokens(prompt)}) <= 1


def _scale(row: ConceptWeights, alone: bool, named: float | None = None) -> float:
    """The one that is named; else the weights' own for a concept that is ``alone``. Among several each stands weaker,
    and gets all that was learned.
    """
    if named is not None:
        return named
    return mixing.own_scale(row) if alone else 1.0


def _acts(session: Session, row: ConceptWeights, names: list[str], inside: set[str]) -> bool:
    """Whether weights that were asked for act on the whole picture: not where all they teach stands in regions."""
    taught = set(_taught(session, [row]))
    return bool(taught & set(names)) or not taught & inside


def _teachers(
    session: Session,
    owner_id: str,
    names: list[str],
    base: BaseModelInfo,
    asked: Chosen,
    *,
    alone: bool,
    pointer: str = "",
) -> tuple[Mapping[str, Placeholder], Chosen, list[Job]]:
    """What the tokens of one text stand for, the weights that act on it (``asked``, else the newest of each token),
    and the trainings that are awaited. Invalid where such weights must be merged first.
    """
    known, needed = _placeholders(
        session, owner_id, names, base, [row for row, _ in asked], pointer=f"{pointer}/prompt"
    )
    if not asked:
        ids = dict.fromkeys(each.weights_id for each in known.values() if each.weights_id)
        rows = [owned.get(session, ConceptWeights, owner_id, weights_id) for weights_id in ids]
        asked = [(row, ActingWeights(id=row.id, scale=_scale(row, alone))) for row in rows]
    mixing.require_one_edit(session, [row for row, _ in asked], needed, f"{pointer}/prompt")
    return known, asked, needed


def _resolved(
    session: Session, owner_id: str, base: BaseModelInfo, area: Area, asked: Chosen, *, alone: bool
) -> tuple[Resolved, Chosen, list[Job]]:
    """A region with its weights: those of ``asked`` that teach a token of it, or all where they are its own."""
    own = area.asked.weights
    teaching = (
        asked if own else [each for each in asked if set(_taught(session, [each[0]])) & set(area.names)]
    )
    regions.require_one_teacher(area, [(row.id, sorted(_taught(session, [row]))) for row, _ in teaching])
    known, chosen, needed = _teachers(
        session, owner_id, area.names, base, teaching, alone=alone, pointer=area.pointer
    )
    every = {**_taught(session, [row for row, _ in chosen]), **known}
    return Resolved(area, every, [choice for _, choice in chosen]), chosen, needed


def _base(
    session: Session, owner_id: str, body: GenerationCreate, rows: list[ConceptWeights], names: list[str]
) -> BaseModelInfo:
    """The base that was named; else that of the weights; else that of the tokens' newest weights, or of the training
    that teaches them now; else the only one."""
    wanted = body.base
    if wanted is None and rows:
        wanted = rows[0].base
    if wanted is None and names:
        newest = (
            select(ConceptWeights.base)
            .join(WeightsConcept, WeightsConcept.weights_id == ConceptWeights.id)
            .join(Concept, Concept.id == WeightsConcept.concept_id)
            .where(Concept.owner_id == owner_id, Concept.token.in_(names), Concept.deleted_at.is_(None),
                   ConceptWeights.deleted_at.is_(None))
            .order_by(ConceptWeights.id.desc())
            .limit(1)
        )  # fmt: skip
        wanted = session.scalar(newest)
        if wanted is None and (later := prompts.being_taught(session, owner_id, names, None)):
            wanted = max((job for _, job in later.values()), key=lambda job: job.id).base
    base = bases.choose(session, wanted)
    if any(row.base != base.id for row in rows):
        raise Invalid.at("/weights", "These weights were learned on another base model.", code="other-base")
    return base


def _require_unchanged(session: Session, base: BaseModelInfo, rows: list[ConceptWeights]) -> None:
    """Invalid where weights were learned on other tensors of the base: no worker would draw with them."""
    if changed := [row for row in rows if row.base_hash != base.hash]:
        names = " and ".join(f"@{name}" for name in sorted(_taught(session, changed)))
        raise Invalid.at(
            "/weights",
            f"{base.title} has changed since {names or 'these weights'} learned on it. Train again.",
            code="base-changed",
        )


def _placeholders(
    session: Session,
    owner_id: str,
    names: list[str],
    base: BaseModelInfo,
    rows: list[ConceptWeights],
    *,
    pointer: str,
) -> tuple[Mapping[str, Placeholder], list[Job]]:
    """What each token of the prompt stands for, and the trainings that teach it only now, oldest first. Invalid for
    unknown and foreign tokens alike."""
    known = _taught(session, rows) if rows else prompts.lookup(session, owner_id, names, base.id)
    missing = [name for name in names if name not in known]
    needed: dict[str, Job] = {}
    if missing and not rows:
        for name, (later, job) in prompts.being_taught(session, owner_id, missing, base.id).items():
            known[name], needed[job.id] = later, job
        missing = [name for name in names if name not in known]
    if not missing:
        return {name: known[name] for name in names}, [needed[job_id] for job_id in sorted(needed)]
    mine = prompts.untrained(session, owner_id, missing)
    if not mine.issuperset(missing):
        raise Invalid.at(pointer, "The prompt names a concept that does not exist.", code="unknown-token")
    if rows:
        raise Invalid.at(
            pointer, "The chosen weights do not teach every concept named.", code="token-not-taught"
        )
    raise Invalid.at(
        pointer,
        "A concept of the prompt has not been trained on this base yet. Train it first.",
        code="untrained-token",
    )


def _taught(session: Session, rows: list[ConceptWeights]) -> dict[str, Placeholder]:
    query = (
        select(Concept.token, WeightsConcept.token, ConceptWeights)
        .join(WeightsConcept, WeightsConcept.concept_id == Concept.id)
        .join(ConceptWeights, ConceptWeights.id == WeightsConcept.weights_id)
        .where(ConceptWeights.id.in_([row.id for row in rows]), Concept.deleted_at.is_(None))
    )
    return {name: prompts.placeholder(weights, taught) for name, taught, weights in session.execute(query)}


def _size(body: GenerationCreate, base: BaseModelInfo) -> tuple[int, int]:
    sides = {"width": body.width or base.resolution, "height": body.height or base.resolution}
    for name, side in sides.items():
        if side > base.max_size or side % base.size_multiple:
            raise Invalid.at(
                f"/{name}",
                f"Must be a multiple of {base.size_multiple}, at most {base.max_size} pixels.",
                code="bad-size",
            )
    return sides["width"], sides["height"]


def pinned(session: Session, row: ConceptWeights, scale: float, gate: Gate | None = None) -> PinnedWeights:
    """Weights by content, with what they teach."""
    links = session.scalars(
        select(WeightsConcept).where(WeightsConcept.weights_id == row.id).order_by(WeightsConcept.token)
    ).all()
    return PinnedWeights(
        file=PinnedFile(id=row.id, storage_key=row.storage_key, sha256=row.sha256),
        scale=scale,
        gate=gate,
        tokens=[link.token for link in links],
        concepts=[link.concept_id for link in links],
    )
