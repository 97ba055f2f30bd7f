"""Every table. Each carries its owner from the first migration on; times are UTC; JSON is JSONB on Postgres.

Rules live in the schema where the database can hold them: one running holder of a lock, one live job per unique key,
one answer per idempotency key, terminal jobs have an end, running jobs have a worker (reliability 2.2).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, deferred, mapped_column

from backend.identifiers import new_id

LOCAL_OWNER = "00000000-0000-7000-8000-000000000001"
"""The synthetic owner of a single-user installation."""

Json = JSON().with_variant(JSONB(), "postgresql")


def now() -> datetime:
    """The present in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in and out, also on SQLite, which forgets the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Constraint names are fixed, so that migrations are the same on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[Any] = {
        dict[str, Any]: Json,
        list[str]: Json,
        datetime: UtcDateTime(),
        str: String(),
        int: BigInteger(),
    }


def _id() -> Mapped[str]:
    return mapped_column(String(36), primary_key=True, default=new_id)


def _owner() -> Mapped[str]:
    return mapped_column(ForeignKey("owners.id", ondelete="CASCADE"), index=True)


class Owner(Base):
    __tablename__ = "owners"
    id: Mapped[str] = _id()
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)


class BaseModel(Base):
    """A base model some worker has registered. ``description`` is a `BaseDescription` less the tokenizer."""

    __tablename__ = "base_models"
    id: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[str]
    description: Mapped[dict[str, Any]]
    tokenizer_json: Mapped[str] = deferred(mapped_column(Text))
    updated_at: Mapped[datetime] = mapped_column(default=now)


class Worker(Base):
    """A supervisor and its slot. Alive while ``hb_seq`` moves; ``seen_at`` is for display and for ``available``."""

    __tablename__ = "workers"
    id: Mapped[str] = _id()
    slot: Mapped[str]
    device: Mapped[str]
    state: Mapped[str]  # starting | ready | busy | defunct | stopped
    hb_seq: Mapped[int] = mapped_column(default=0)
    bases: Mapped[dict[str, Any]] = mapped_column(default=dict)  # base id -> hash
    memory: Mapped[dict[str, Any]] = mapped_column(default=dict)
    app_version: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(default=now)
    seen_at: Mapped[datetime] = mapped_column(default=now)


class Concept(Base):
    __tablename__ = "concepts"
    id: Mapped[str] = _id()
    owner_id: Mapped[str] = _owner()
    name: Mapped[str]
    kind: Mapped[str]
    class_noun: Mapped[str]
    token: Mapped[str]
    sample: Mapped[str | None]  # slug of the shipped sample set it was made from
    consent: Mapped[dict[str, Any] | None]  # a `Consent`, where the photos show a person
    created_at: Mapped[datetime] = mapped_column(default=now)
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("kind in ('subject', 'style')", name="kind"),
        Index("uq_concepts_owner_token", "owner_id", "token", unique=True, sqlite_where=text("deleted_at IS NULL"),
              postgresql_where=text("deleted_at IS NULL")),
        Index("ix_concepts_owner_newest", "owner_id", "id"),
    )  # fmt: skip


class Photo(Base):
    __tablename__ = "photos"
    id: Mapped[str] = _id()
    owner_id: Mapped[str] = _owner()
    concept_id: Mapped[str] = mapped_column(ForeignKey("concepts.id", ondelete="CASCADE"), index=True)
    display_name: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str]
    thumbnail_key: Mapped[str]
    fingerprint: Mapped[str]  # 64-bit difference hash, hexadecimal, for near-duplicates
    warnings: Mapped[list[str]] = mapped_column(default=list)
    created_at: Mapped[datetime] = mapped_column(default=now)


class ConceptWeights(Base):
    __tablename__ = "concept_weights"
    id: Mapped[str] = _id()
    owner_id: Mapped[str] = _owner()
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), unique=True)  # None: imported
    method: Mapped[str]
    side: Mapped[str]
    base: Mapped[str]
    base_hash: Mapped[str]
    manifest: Mapped[dict[str, Any]]
    analysis: Mapped[dict[str, Any] | None]
    report: Mapped[dict[str, Any]] = mapped_column(default=dict)
    sketch: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)  # what forecasts of merges compare
    parents: Mapped[list[str]] = mapped_column(default=list)
    size_bytes: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)
    deleted_at: Mapped[datetime | None]


class WeightsConcept(Base):
    """Which concepts weights teach, under which token."""

    __tablename__ = "weights_concepts"
    weights_id: Mapped[str] = mapped_column(
        ForeignKey("concept_weights.id", ondelete="CASCADE"), primary_key=True
    )
    concept_id: Mapped[str] = mapped_column(
        ForeignKey("concepts.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    owner_id: Mapped[str] = _owner()
    token: Mapped[str]


class Image(Base):
    __tablename__ = "images"
    id: Mapped[str] = _id()
    owner_id: Mapped[str] = _owner()
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    index: Mapped[int]
    seed: Mapped[int]
    prompt: Mapped[str] = mapped_column(Text)
    recipe: Mapped[dict[str, Any]]
    width: Mapped[int]
    height: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str]
    thumbnail_key: Mapped[str]
    starred: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (
        Index("uq_images_job_index", "job_id", "index", unique=True),
        Index("ix_images_owner_newest", "owner_id", "id"),
    )


class ImageWeights(Base):
    __tablename__ = "image_weights"
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id", ondelete="CASCADE"), primary_key=True)
    weights_id: Mapped[str] = mapped_column(ForeignKey("concept_weights.id"), primary_key=True, index=True)
    owner_id: Mapped[str] = _owner()


class Evaluation(Base):
    """What judges said of weights. ``report`` is an `EvaluationReport`."""

    __tablename__ = "evaluations"
    id: Mapped[str] = _id()
    owner_id: Mapped[str] = _owner()
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    base: Mapped[str]
    base_hash: Mapped[str]
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (Index("ix_evaluations_owner_newest", "owner_id", "id"),)


class EvaluationWeights(Base):
    """Which weights an evaluation is about."""

    __tablename__ = "evaluation_weights"
    evaluation_id: Mapped[str] = mapped_column(
        ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True
    )
    weights_id: Mapped[str] = mapped_column(
        ForeignKey("concept_weights.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    owner_id: Mapped[str] = _owner()


class Job(Base):
    """The truth about a piece of work; a broker's message is a hint that carries its id.

    ``state`` is written by services/jobs alone.
    """

    __tablename__ = "jobs"
    id: Mapped[str] = _id()
    owner_id: Mapped[str] = _owner()
    kind: Mapped[str]
    queue: Mapped[str]
    priority: Mapped[int] = mapped_column(default=0)  # larger runs first
    state: Mapped[str]
    request: Mapped[dict[str, Any]]
    spec: Mapped[dict[str, Any]]
    spec_version: Mapped[int]
    spec_hash: Mapped[str]
    base: Mapped[str]
    base_hash: Mapped[str]
    not_before: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(default=0)
    deaths: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(default=0)
    worker_id: Mapped[str | None]
    hb_seq: Mapped[int] = mapped_column(default=0)
    batch_key: Mapped[str | None]  # jobs of one key may share calls of the denoiser; None: never
    shared: Mapped[bool] = mapped_column(
        default=False, server_default=false()
    )  # this attempt began with neighbours
    alone: Mapped[bool] = mapped_column(default=False)  # run without batch neighbours after a shared death
    cancel_requested_at: Mapped[datetime | None]
    finish_requested_at: Mapped[datetime | None]
    timed_out_at: Mapped[datetime | None]  # the running attempt is past its deadline and is being stopped
    lock_key: Mapped[str | None]
    uniq_key: Mapped[str | None]
    phase: Mapped[str] = mapped_column(default="")
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int] = mapped_column(default=0)
    rate: Mapped[float | None]
    eta_s: Mapped[float | None]
    checkpoint_step: Mapped[int | None]
    deaths_checkpoint_step: Mapped[int | None]  # checkpoint_step at the last death: a later one resets deaths
    last_event: Mapped[int] = mapped_column(default=0)
    result: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[dict[str, Any] | None]
    retry_of: Mapped[str | None] = mapped_column(String(36))
    app_version: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("state in ('blocked','queued','running','succeeded','failed','cancelled')", name="state"),
        CheckConstraint("state not in ('succeeded','failed','cancelled') or finished_at is not null", name="finished"),
        CheckConstraint("(state = 'running') = (worker_id is not null)", name="worker"),
        Index("uq_jobs_lock", "lock_key", unique=True, sqlite_where=text("state = 'running'"),
              postgresql_where=text("state = 'running'")),
        Index("uq_jobs_uniq", "uniq_key", unique=True, sqlite_where=text("state in ('queued','running')"),
              postgresql_where=text("state in ('queued','running')")),
        Index("ix_jobs_claim", "queue", "priority", "not_before", "id", sqlite_where=text("state = 'queued'"),
              postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_running", "owner_id", sqlite_where=text("state = 'running'"),
              postgresql_where=text("state = 'running'")),
        Index("ix_jobs_owner_newest", "owner_id", "id"),
        Index("ix_jobs_owner_started", "owner_id", "started_at"),
    )  # fmt: skip


class JobNeed(Base):
    """A job that waits for another. Written together with the job and never changed, so there are no cycles."""

    __tablename__ = "job_needs"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    needs_id: Mapped[str] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    owner_id: Mapped[str] = _owner()


class JobEvent(Base):
    """What happened to a job, gapless per job; the stream's ``id`` is ``<job>:<seq>``."""

    __tablename__ = "job_events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = _owner()
    attempt: Mapped[int]
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Artifact(Base):
    """A published file of a job (preview pictures; weights and images carry their own rows as well)."""

    __tablename__ = "artifacts"
    id: Mapped[str] = _id()
    owner_id: Mapped[str] = _owner()
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    fence: Mapped[int]
    role: Mapped[str]  # weights | image | thumbnail | preview
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    media_type: Mapped[str]
    storage_key: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Outbox(Base):
    """Work to do after a commit: hints to ring, files to purge. Emptied by the maintenance loop."""

    __tablename__ = "outbox"
    id: Mapped[str] = _id()
    owner_id: Mapped[str] = _owner()
    topic: Mapped[str]  # hint | purge
    ref: Mapped[str]
    not_before: Mapped[datetime] = mapped_column(default=now)
    tries: Mapped[int] = mapped_column(default=0)


class IdempotencyKey(Base):
    __tablename__ = "idempotency_keys"
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[str]
    status: Mapped[int | None]  # None while the first request runs
    headers: Mapped[dict[str, Any]] = mapped_column(default=dict)
    body: Mapped[str] = mapped_column(Text, default="")
    expires_at: Mapped[datetime]


class Leader(Base):
    """One row: who runs maintenance. Taken over when ``hb_seq`` stands still."""

    __tablename__ = "leaders"
    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    hb_seq: Mapped[int]
