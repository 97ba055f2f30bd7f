"""Weights from another studio: compared with the base models here, then a version of a concept like any other."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import Concept, ConceptWeights, WeightsConcept
from backend.schemas.bases import BaseDescription
from backend.schemas.concepts import ConceptCreate
from backend.schemas.weights import TaughtToken, WeightsManifest
from backend.services import bases, concepts, owned
from backend.services.import_checks import check, wrong
from backend.storage import Storage
from backend.weights_upload import ReceivedWeights


def store(
    session: Session,
    storage: Storage,
    owner_id: str,
    received: ReceivedWeights,
    concept_ids: Sequence[str] = (),
) -> ConceptWeights:
    """Publish received weights as a version of the concepts that are named, one for each of their tokens in the file's
    order; of new ones where none is named.

    Invalid when they do not fit a base model here, or the concept; then nothing is kept. Call it before other
    statements of the session: the file is made durable before the transaction really begins.
    """
    try:
        stored = storage.adopt(received.path)
    except BaseException:
        received.discard()
        raise
    try:
        manifest = received.read.manifest
        base = _base(session, manifest)
        check(received.read, base)
        taught = _concepts(session, owner_id, manifest, concept_ids)
        row = ConceptWeights(
            owner_id=owner_id, job_id=None, method=manifest.method, side=manifest.side, base=base.id,
            base_hash=base.hash, manifest=manifest.model_dump(mode="json"), analysis=None, report={}, parents=[],
            size_bytes=stored.size_bytes, sha256=stored.sha256, storage_key=stored.key,
        )  # fmt: skip
        session.add(row)
        session.flush()
        for token, concept in taught.items():
            session.add(
                WeightsConcept(weights_id=row.id, concept_id=concept.id, owner_id=owner_id, token=token)
            )
        session.flush()
    except BaseException:
        storage.delete(stored.key)
        raise
    return row


def _base(session: Session, manifest: WeightsManifest) -> BaseDescription:
    """The base model here with the same weights, whatever it is called there."""
    for known in bases.list_all(session):
        if known.hash == manifest.base_hash and known.family == manifest.base_family:
            base = bases.with_tokenizer(session, known.id)
            if base.prediction_type in ("", manifest.prediction_type):
                return base
    raise wrong(
        "These weights were learned on a base model that is not here; they mean nothing on another.",
        "other-base",
    )


def _concepts(
    session: Session, owner_id: str, manifest: WeightsManifest, concept_ids: Sequence[str]
) -> dict[str, Concept]:
    """Token in the file -> concept. NotFound for a foreign concept."""
    if not concept_ids:
        if any(taught.kind == "subject" and not taught.class_noun for taught in manifest.tokens):
            raise Invalid.at(
                "/concept",
                "The file does not say what its subject is. Make a concept, and import the file into it.",
            )
        return {taught.token: _created(session, owner_id, taught) for taught in manifest.tokens}
    named = [owned.get(session, Concept, owner_id, each) for each in concept_ids]
    if len(named) != len(manifest.tokens) or len({concept.id for concept in named}) < len(named):
        raise Invalid.at(
            "/concept",
            f"The file teaches {len(manifest.tokens)} concepts. Name one for each, in the order of its words, or none.",
        )
    for taught, concept in zip(manifest.tokens, named, strict=True):
        if taught.kind != concept.kind:
            raise Invalid.at(
                "/concept", f"The file teaches a {taught.kind}, and {concept.name} is a {concept.kind}."
            )
    return {taught.token: concept for taught, concept in zip(manifest.tokens, named, strict=True)}


def _created(session: Session, owner_id: str, taught: TaughtToken) -> Concept:
    """A new concept, under the file's token, or with a number behind it where that is taken."""
    name = taught.token.replace("-", " ").replace("_", " ").strip().capitalize()
    body = ConceptCreate(name=name, kind=taught.kind, class_noun=taught.class_noun)
    return concepts.create(session, owner_id, body, wish=taught.token)
