"""Weights from another studio: compared with the base models here, then a version of a concept like any other."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from pydantic import ValidationError
from sqlalchemy.orm import Session

from backend.errors import AppError, Invalid
from backend.models import Concept, ConceptWeights, WeightsConcept
from backend.schemas.bases import BaseDescription
from backend.schemas.concepts import ConceptCreate
from backend.schemas.methods import CARDS
from backend.schemas.weights import ReadWeights, TaughtToken, WeightsManifest
from backend.services import bases, concepts, owned
from backend.storage import Storage
from backend.weights_upload import ReceivedWeights

TOKEN = re.compile(r"^[a-z][a-z0-9_-]{0,39}$")
MOST_TOKENS = 8
MOST_VECTORS = 64
Shapes = dict[str, list[int]]


def _custom_diffusion(manifest: WeightsManifest, base: BaseDescription) -> Shapes:
    return {f"site.{site}.delta": shape for site, shape in base.text_sites.items()}


def _perfusion(manifest: WeightsManifest, base: BaseDescription) -> Shapes:
    return _rank_one_parts(manifest, base, "target", ("key", "dual", "class_state"))


def _rank_one(manifest: WeightsManifest, base: BaseDescription) -> Shapes:
    return _rank_one_parts(manifest, base, "change", ("key", "dual"))


def _rank_one_parts(
    manifest: WeightsManifest, base: BaseDescription, site_part: str, token_parts: Sequence[str]
) -> Shapes:
    """A row a token for every value matrix, and text states, as wide as those matrices, for every token."""
    values = {site: shape for site, shape in base.text_sites.items() if site.endswith(".to_v")}
    width = next(iter(values.values()))[1] if values else 0
    rows = {f"site.{site}.{site_part}": [len(manifest.tokens), shape[0]] for site, shape in values.items()}
    return rows | {
        f"token.{taught.token}.{part}": [1, width] for taught in manifest.tokens for part in token_parts
    }


WRITES: dict[str, Callable[[WeightsManifest, BaseDescription], Shapes]] = {
    "custom-diffusion": _custom_diffusion,
    "perfusion": _perfusion,
    "rank-one": _rank_one,
}
"""Names and shapes of what each method writes beside the rows of its tokens; other methods are not imported yet."""
NOUN_INSIDE = frozenset({"perfusion"})
"""Methods whose word stands for its class noun too, so that their files name none."""


def store(
    session: Session,
    storage: Storage,
    owner_id: str,
    received: ReceivedWeights,
    concept_id: str | None = None,
) -> ConceptWeights:
    """Publish received weights as a version of the concept that is named, else of a new one for each of their tokens.

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
        _check_manifest(manifest)
        _check_tensors(received.read, base)
        taught = _concepts(session, owner_id, manifest, concept_id)
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


def _wrong(detail: str, code: str = "weights-invalid") -> AppError:
    return Invalid.at("/file", detail, code=code)


def _base(session: Session, manifest: WeightsManifest) -> BaseDescription:
    """The base model here with the same weights, whatever it is called there."""
    for known in bases.list_all(session):
        if known.hash == manifest.base_hash and known.family == manifest.base_family:
            return bases.with_tokenizer(session, known.id)
    raise _wrong(
        "These weights were learned on a base model that is not here; they mean nothing on another.",
        "other-base",
    )


def _check_manifest(manifest: WeightsManifest) -> None:
    card = CARDS.get(manifest.method)
    if card is None:
        raise _wrong(
            "These weights were learned with a method that this studio does not have.", "unknown-method"
        )
    if card.name not in WRITES:
        raise _wrong(f"Weights learned with {card.title} cannot be imported yet.", "import-not-supported")
    try:
        params = card.params_type.model_validate(manifest.params, strict=True)
    except ValidationError:
        raise _wrong("The parameters in the file are not those of its method.") from None
    if manifest.side != card.side(params):
        raise _wrong("The file says another side than its method has.")
    if manifest.side == "weights":
        raise _wrong("Weights that must be installed cannot be imported yet.", "import-not-supported")
    names = [taught.token for taught in manifest.tokens]
    if not 1 <= len(names) <= MOST_TOKENS or len(set(names)) < len(names):
        raise _wrong(f"The file must teach one to {MOST_TOKENS} different tokens.")
    if not all(_plain(taught, card.name in NOUN_INSIDE) for taught in manifest.tokens):
        raise _wrong("A token or class noun in the file is not one that this studio writes.")
    texts = [manifest.base, manifest.code_version, *manifest.parents]
    if any(len(text) > 200 for text in texts) or len(manifest.parents) > 64 or manifest.steps < 0:
        raise _wrong("The description of the weights in the header is not right.")


def _plain(taught: TaughtToken, noun_inside: bool) -> bool:
    noun = taught.class_noun
    fewest, most = (1, 1) if noun_inside else (0 if noun.strip() else 1, MOST_VECTORS)
    return (
        bool(TOKEN.fullmatch(taught.token))
        and taught.token not in concepts.RESERVED_TOKENS
        and fewest <= taught.vectors <= most
        and not taught.layers
        and len(noun) <= 60
        and (noun == "" if noun_inside else bool(noun.strip()) or taught.kind == "style")
        and not any(unicodedata.category(character)[0] == "C" or character in "<>@" for character in noun)
    )


def _check_tensors(read: ReadWeights, base: BaseDescription) -> None:
    """Exactly the tensors that the method writes for this base, each of its shape."""
    manifest = read.manifest
    rows = {
        f"token.{taught.token}.{part}": taught.vectors
        for taught in manifest.tokens
        for part in ("learned", "start")
        if taught.vectors
    }
    written = WRITES[manifest.method](manifest, base)
    if manifest.compression is not None:
        if manifest.method != "custom-diffusion":
            raise _wrong("Weights of this method that were made smaller cannot be imported.")
        written = _smaller_sites(read, base)
    in_bytes = {name.removesuffix(".scale") for name in written if name.endswith(".scale")}
    if read.tensors.keys() != rows.keys() | written.keys():
        raise _wrong("The file lacks tensors that its method writes for this base model, or has others.")
    for name, tensor in read.tensors.items():
        expected = written.get(name) or [rows[name], base.token_width]
        if tensor.shape != expected:
            raise _wrong("A tensor of the file does not have the shape that this base model needs.")
        if (tensor.dtype == "I8") != (name.removesuffix(".down").removesuffix(".up") in in_bytes):
            raise _wrong("A tensor of the file is not of the type that its method writes.")


def _smaller_sites(read: ReadWeights, base: BaseDescription) -> dict[str, list[int]]:
    """Tensors with their shapes that weights may have which were made smaller: for each site the matrix, or its
    factors with or without a scale, or nothing.
    """
    found: dict[str, list[int]] = {}
    for site, (rows, columns) in base.text_sites.items():
        down = read.tensors.get(f"site.{site}.down")
        if down is not None:
            rank = down.shape[0]
            if rank > min(rows, columns):
                raise _wrong("A tensor of the file does not have the shape that this base model needs.")
            found[f"site.{site}.down"], found[f"site.{site}.up"] = [rank, columns], [rows, rank]
            if f"site.{site}.scale" in read.tensors:
                found[f"site.{site}.scale"] = [rank]
        elif f"site.{site}.delta" in read.tensors:
            found[f"site.{site}.delta"] = [rows, columns]
    return found


def _concepts(
    session: Session, owner_id: str, manifest: WeightsManifest, concept_id: str | None
) -> dict[str, Concept]:
    """Token in the file -> concept. NotFound for a foreign concept."""
    if concept_id is None:
        if any(taught.kind == "subject" and not taught.class_noun for taught in manifest.tokens):
            raise Invalid.at(
                "/concept",
                "The file does not say what its subject is. Make a concept, and import the file into it.",
            )
        return {taught.token: _created(session, owner_id, taught) for taught in manifest.tokens}
    concept = owned.get(session, Concept, owner_id, concept_id)
    if len(manifest.tokens) > 1:
        raise Invalid.at("/concept", "The file teaches several concepts. Import it without naming one.")
    [taught] = manifest.tokens
    if taught.kind != concept.kind:
        raise Invalid.at(
            "/concept", f"The file teaches a {taught.kind}, and this concept is a {concept.kind}."
        )
    return {taught.token: concept}


def _created(session: Session, owner_id: str, taught: TaughtToken) -> Concept:
    """A new concept, under the file's token, or with a number behind it where that is taken."""
    name = taught.token.replace("-", " ").replace("_", " ").strip().capitalize()
    body = ConceptCreate(name=name, kind=taught.kind, class_noun=taught.class_noun)
    return concepts.create(session, owner_id, body, wish=taught.token)
