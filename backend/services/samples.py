"""The sample photos that ship: held-out subjects, so that the first concept is two clicks away."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path

from sqlalchemy.orm import Session

from backend.errors import NotFound
from backend.models import Concept
from backend.schemas.concepts import ConceptCreate
from backend.schemas.samples import SampleSet
from backend.services import concepts, photos
from backend.storage import Storage
from backend.uploads import Darkroom

FOLDER = Path(__file__).resolve().parent.parent / "sample_photos"


@lru_cache
def _shipped() -> dict[str, dict[str, object]]:
    try:
        listed = json.loads((FOLDER / "samples.json").read_text())["subjects"]
    except FileNotFoundError:
        return {}
    return {entry["slug"]: entry for entry in listed}


def sets() -> list[SampleSet]:
    """The shipped sets, the featured ones first."""
    found = [_schema(slug, entry) for slug, entry in _shipped().items()]
    return sorted(found, key=lambda each: not each.featured)


def photo_file(slug: str, name: str) -> Path:
    """The local file of a sample photo. NotFound for anything the list does not name."""
    if name not in _names(_entry(slug)):
        raise NotFound
    return FOLDER / slug / name


def create_concept(
    session: Session, storage: Storage, owner_id: str, slug: str, darkroom: Darkroom
) -> Concept:
    """A concept with the set's photos, which go the same road as an upload. NotFound for an unknown set."""
    entry = _entry(slug)
    names = _names(entry)
    prepared = darkroom.prepare([(name, io.BytesIO((FOLDER / slug / name).read_bytes())) for name in names])
    try:
        body = ConceptCreate.model_validate({key: entry[key] for key in ("name", "kind", "class_noun")})
        row = concepts.create(session, owner_id, body, sample=slug)
        photos.add(session, storage, owner_id, row.id, prepared)
    except BaseException:
        for photo in prepared:
            photo.discard()
        raise
    return row


def _entry(slug: str) -> dict[str, object]:
    entry = _shipped().get(slug)
    if entry is None:
        raise NotFound
    return entry


def _names(entry: dict[str, object]) -> list[str]:
    listed = entry["train"]
    assert isinstance(listed, list)
    return [Path(name).name for name in listed]


def _schema(slug: str, entry: dict[str, object]) -> SampleSet:
    shown = {key: entry[key] for key in ("name", "kind", "class_noun", "licence", "source", "featured")}
    urls = [f"/api/v1/samples/{slug}/photos/{name}" for name in _names(entry)]
    return SampleSet.model_validate({"slug": slug, **shown, "photos": urls})
