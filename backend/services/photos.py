"""Photos of a concept: adopt what the darkroom prepared, all or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.errors import Conflict, Invalid, NotFound
from backend.models import Concept, Photo
from backend.schemas import concepts as schemas
from backend.schemas.concepts import PhotoPatch
from backend.schemas.trainings import PinnedFile
from backend.services import dependants, owned
from backend.storage import Storage, Stored
from backend.uploads import Darkroom, PreparedPhoto, near

MAX_PHOTOS = 100
MIN_COMPARED = 2
"""Photos of a concept with which pictures can be compared."""
"""Of one concept, whatever the method's own limit for a training."""
VERSION_DIGITS = 12
"""Of the sha256, in the address of a photo's files: another picture, another address."""
_DUPLICATE = "Almost the same as another photo: different views teach more."


@dataclass(frozen=True)
class EditedPhoto:
    """A photo after its edit; ``prepared`` is None where the edit leaves it as it is."""

    owner_id: str
    concept_id: str
    photo_id: str
    source_key: str
    prepared: PreparedPhoto | None


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
    if count(session, concept.id) + len(prepared) > MAX_PHOTOS:
        raise Conflict(
            f"A concept holds at most {MAX_PHOTOS} photos. Remove some first.", code="too-many-photos"
        )
    rows = []
    for photo, files in zip(prepared, stored, strict=True):
        row = Photo(owner_id=concept.owner_id, concept_id=concept.id, display_name=photo.display_name)
        _show(row, photo, files)
        rows.append(row)
    session.add_all(rows)
    session.flush()
    _tell_duplicates(session, concept.id)
    return rows


def edited(storage: Storage, darkroom: Darkroom, row: Photo, wanted: PhotoPatch) -> EditedPhoto:
    """The photo turned and cropped, not stored yet. Invalid for a crop that is too small.

    It takes as long as an upload, so no session is open meanwhile; ``replace`` then has little to do.
    """
    crop = None if wanted.crop is None or wanted.crop.whole else wanted.crop
    prepared = None
    if wanted.rotate or crop:
        box = (crop.x, crop.y, crop.width, crop.height) if crop else None
        prepared = darkroom.edit(file(storage, row), row.display_name, rotate=wanted.rotate, crop=box)
    return EditedPhoto(row.owner_id, row.concept_id, row.id, row.storage_key, prepared)


def replace(session: Session, storage: Storage, edited: EditedPhoto) -> Photo:
    """Put the edited picture in the place of the former one, whose files are purged after the commit.

    Conflict while a training uses it, or when somebody else edited the photo in the meantime.
    """
    if edited.prepared is None:
        return get(session, edited.owner_id, edited.concept_id, edited.photo_id)
    stored: list[Stored] = []
    try:
        stored.append(storage.adopt(edited.prepared.picture))
        stored.append(storage.adopt(edited.prepared.thumbnail))
        row = changeable(session, edited.owner_id, edited.concept_id, edited.photo_id)
        if row.storage_key != edited.source_key:
            raise Conflict("This photo was changed in the meantime. Look at it again.", code="photo-changed")
        owned.purge(session, row.owner_id, [row.storage_key, row.thumbnail_key])
        _show(row, edited.prepared, (stored[0], stored[1]))
        session.flush()
        _tell_duplicates(session, row.concept_id)
    except BaseException:
        edited.prepared.discard()
        for kept in stored:
            storage.delete(kept.key)
        raise
    return row


def _show(row: Photo, photo: PreparedPhoto, files: tuple[Stored, Stored]) -> None:
    picture, thumbnail = files
    row.width, row.height, row.fingerprint = photo.width, photo.height, photo.fingerprint
    row.sha256, row.storage_key, row.thumbnail_key = picture.sha256, picture.key, thumbnail.key
    row.warnings = list(photo.warnings)


def _tell_duplicates(session: Session, concept_id: str) -> None:
    """Say of each photo whether an earlier one of the concept is almost the same, as the photos are now."""
    earlier: list[str] = []
    for row in of_concept(session, concept_id):
        told = [sentence for sentence in row.warnings if sentence != _DUPLICATE]
        row.warnings = told + [_DUPLICATE] * any(near(row.fingerprint, other) for other in earlier)
        earlier.append(row.fingerprint)
    session.flush()


def require_changeable(session: Session, concept: Concept) -> None:
    """Conflict while a training that has not ended uses the concept's photos."""
    if dependants.training_on(session, concept):
        raise Conflict(
            "A training uses these photos now. Wait for it, or cancel it, then change them.",
            code="training-locked",
        )


def changeable(session: Session, owner_id: str, concept_id: str, photo_id: str) -> Photo:
    """The owner's photo. NotFound otherwise, Conflict while a training uses it."""
    row = get(session, owner_id, concept_id, photo_id)
    require_changeable(session, owned.get(session, Concept, owner_id, concept_id))
    return row


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


def pinned(rows: Sequence[Photo]) -> list[PinnedFile]:
    """As a worker gets them."""
    return [PinnedFile(id=row.id, storage_key=row.storage_key, sha256=row.sha256) for row in rows]


def compared_with(session: Session, concept: Concept, pointer: str, purpose: str) -> list[Photo]:
    """A concept's photos, to compare pictures with. Invalid where they are too few for the ``purpose``."""
    found = of_concept(session, concept.id)
    if len(found) < MIN_COMPARED:
        raise Invalid.at(
            pointer,
            f"{concept.name} has too few photos to compare with: {purpose} needs {MIN_COMPARED}.",
            code="photo-count",
            count=len(found),
            min=MIN_COMPARED,
        )
    return found


def count(session: Session, concept_id: str) -> int:
    return session.scalar(select(func.count()).where(Photo.concept_id == concept_id)) or 0


def remove(session: Session, owner_id: str, concept_id: str, photo_id: str) -> None:
    """Forget a photo; its files are purged after the commit. Conflict while a training uses it."""
    row = changeable(session, owner_id, concept_id, photo_id)
    owned.purge(session, owner_id, [row.storage_key, row.thumbnail_key])
    session.delete(row)
    session.flush()
    _tell_duplicates(session, concept_id)


def file(storage: Storage, row: Photo, size: Literal["full", "thumbnail"] = "full") -> Path:
    """The local file of a photo or of its thumbnail."""
    return storage.path(row.storage_key if size == "full" else row.thumbnail_key)


def report(photo: PreparedPhoto) -> schemas.PhotoReport:
    """What is known of a photo that was not stored."""
    return schemas.PhotoReport(
        width=photo.width, height=photo.height, warnings=list(photo.warnings), fingerprint=photo.fingerprint
    )


def to_schema(row: Photo) -> schemas.Photo:
    """The photo as the API shows it."""
    url, version = f"/api/v1/concepts/{row.concept_id}/photos/{row.id}", row.sha256[:VERSION_DIGITS]
    return schemas.Photo(
        id=row.id,
        width=row.width,
        height=row.height,
        url=f"{url}/file?v={version}",
        thumbnail_url=f"{url}/thumbnail?v={version}",
        warnings=list(row.warnings),
    )
