"""Photos of a concept: adopt what the darkroom prepared, all or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.errors import Conflict, NotFound
from backend.models import Concept, Photo
from backend.schemas import concepts as schemas
from backend.services import dependants, owned
from backend.storage import Storage, Stored
from backend.uploads import PreparedPhoto, near

MAX_PHOTOS = 100
"""Of one concept, whatever the method's own limit for a training."""
_DUPLICATE = "Almost the same as another photo: different views teach more."


def add(
    session: Session, storage: Storage, owner_id: str, concept_id: str, prepared: Sequence[PreparedPhoto]
) -> list[Photo]:
    """Store prepared photos. NotFound, or Conflict while a training uses the concept; then nothing is kept.

    Call it before other statements of the session: files are made durable before the transaction really begins.
    """
    stored: list[tuple[Stored, Stored]] = []
    try:
        for photo in prepared:
            picture = storage.adopt(photo.picture)
            try:
                stored.append((picture, storage.adopt(photo.thumbnail)))
            except BaseException:
                storage.delete(picture.key)
                raise
        return _insert(session, owned.get(session, Concept, owner_id, concept_id), prepared, stored)
    except BaseException:
        for photo in prepared:
            photo.discard()
        for pair in stored:
            for file in pair:
                storage.delete(file.key)
        raise


def _insert(
    session: Session,
    concept: Concept,
    prepared: Sequence[PreparedPhoto],
    stored: Sequence[tuple[Stored, Stored]],
) -> list[Photo]:
    require_changeable(session, concept)
    known = list(session.scalars(select(Photo.fingerprint).where(Photo.concept_id == concept.id)))
    if len(known) + len(prepared) > MAX_PHOTOS:
        raise Conflict(
            f"A concept holds at most {MAX_PHOTOS} photos. Remove some first.", code="too-many-photos"
        )
    rows = []
    for photo, (picture, thumbnail) in zip(prepared, stored, strict=True):
        warnings = list(photo.warnings)
        if any(near(photo.fingerprint, other) for other in known):
            warnings.append(_DUPLICATE)
        known.append(photo.fingerprint)
        rows.append(
            Photo(
                owner_id=concept.owner_id,
                concept_id=concept.id,
                display_name=photo.display_name,
                width=photo.width,
                height=photo.height,
                sha256=picture.sha256,
                storage_key=picture.key,
                thumbnail_key=thumbnail.key,
                fingerprint=photo.fingerprint,
                warnings=warnings,
            )
        )
    session.add_all(rows)
    session.flush()
    return rows


def require_changeable(session: Session, concept: Concept) -> None:
    """Conflict while a training that has not ended uses the concept's photos."""
    if dependants.training_on(session, concept):
        raise Conflict(
            "A training uses these photos now. Wait for it, or cancel it, then change them.",
            code="training-locked",
        )


def get(session: Session, owner_id: str, concept_id: str, photo_id: str) -> Photo:
    """The owner's photo of that concept. NotFound otherwise."""
    row = session.scalar(
        select(Photo)
        .join(Concept, Concept.id == Photo.concept_id)
        .where(
            Photo.id == photo_id,
            Photo.concept_id == concept_id,
            Photo.owner_id == owner_id,
            Concept.deleted_at.is_(None),
        )
    )
    if row is None:
        raise NotFound
    return row


def of_concept(session: Session, concept_id: str) -> list[Photo]:
    """Its photos in the order they came."""
    return list(session.scalars(select(Photo).where(Photo.concept_id == concept_id).order_by(Photo.id)))


def count(session: Session, concept_id: str) -> int:
    return session.scalar(select(func.count()).where(Photo.concept_id == concept_id)) or 0


def remove(session: Session, owner_id: str, concept_id: str, photo_id: str) -> None:
    """Forget a photo; its files are purged after the commit. Conflict while a training uses it."""
    row = get(session, owner_id, concept_id, photo_id)
    require_changeable(session, owned.get(session, Concept, owner_id, concept_id))
    owned.purge(session, owner_id, [row.storage_key, row.thumbnail_key])
    session.delete(row)


def file(storage: Storage, row: Photo, size: Literal["full", "thumbnail"] = "full") -> Path:
    """The local file of a photo or of its thumbnail."""
    return storage.path(row.storage_key if size == "full" else row.thumbnail_key)


def to_schema(row: Photo) -> schemas.Photo:
    """The photo as the API shows it."""
    url = f"/api/v1/concepts/{row.concept_id}/photos/{row.id}"
    return schemas.Photo(
        id=row.id,
        width=row.width,
        height=row.height,
        url=f"{url}/file",
        thumbnail_url=f"{url}/thumbnail",
        warnings=list(row.warnings),
    )
