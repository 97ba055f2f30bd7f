"""Tokens in prompts: ``@stark`` becomes ``<stark> dog``, and the text is counted as the text encoder counts.

Parsing is pure. A token is ``@`` and a name, not directly after a letter or digit (so an address stays text); case
does not matter. The class noun is added unless it follows already.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import select
from sqlalchemy.orm import Session
from tokenizers import Tokenizer

from backend.errors import Invalid
from backend.models import Concept, ConceptWeights, Job, WeightsConcept
from backend.schemas.prompts import PromptReport
from backend.schemas.weights import WeightsManifest
from backend.services import bases

_TOKEN = re.compile(r"(?<![\w@])@([A-Za-z][A-Za-z0-9_-]{0,39})")
_PLACEHOLDER = re.compile(r"<([a-z][a-z0-9_-]{0,39})>")


@dataclass(frozen=True)
class Placeholder:
    """What a token stands for: ``<token>`` in the encoder's text, and the weights that teach it."""

    token: str
    class_noun: str
    vectors: int
    weights_id: str


def normal(prompt: str, pointer: str = "/prompt") -> str:
    """The prompt as it is stored: NFC, without control characters. Invalid for NUL and the like."""
    text = unicodedata.normalize("NFC", prompt)
    if any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in text):
        raise Invalid.at(pointer, "The prompt contains control characters. Remove them.")
    return text


def tokens(prompt: str) -> list[str]:
    """The names of the tokens in a prompt, lower case, without ``@``, each once, in order."""
    return list(dict.fromkeys(_name(match) for match in _TOKEN.finditer(prompt)))


def _name(match: re.Match[str]) -> str:
    return match[1].lower().rstrip("-_")


def resolved(prompt: str, known: Mapping[str, Placeholder]) -> str:
    """The encoder's text: every token that is known becomes its placeholder and class noun."""

    def replace(match: re.Match[str]) -> str:
        placeholder = known.get(_name(match))
        if placeholder is None:
            return match[0]
        tail = match[1][len(_name(match)) :]
        noun, rest = placeholder.class_noun, prompt[match.end() :]
        follows = bool(noun) and re.match(rf"\s+{re.escape(noun)}(?!\w)", rest, re.IGNORECASE)
        return f"<{placeholder.token}>" + ("" if follows or not noun else f" {noun}") + tail

    return _TOKEN.sub(replace, prompt)


def lookup(session: Session, owner_id: str, names: list[str], base: str) -> dict[str, Placeholder]:
    """Tokens of the owner's concepts that have weights for this base, each with its newest weights."""
    query = (
        select(Concept.token, WeightsConcept.token, ConceptWeights)
        .join(WeightsConcept, WeightsConcept.concept_id == Concept.id)
        .join(ConceptWeights, ConceptWeights.id == WeightsConcept.weights_id)
        .where(
            Concept.owner_id == owner_id,
            Concept.token.in_(names),
            Concept.deleted_at.is_(None),
            ConceptWeights.deleted_at.is_(None),
            ConceptWeights.base == base,
        )
        .order_by(ConceptWeights.id)
    )
    found: dict[str, Placeholder] = {}
    for name, taught, weights in session.execute(query):
        found[name] = placeholder(weights, taught)
    return found


def being_taught(
    session: Session, owner_id: str, names: Collection[str], base: str | None
) -> dict[str, tuple[Placeholder, Job]]:
    """Tokens of the owner's concepts that a training teaches that has not ended (on any base where None is given),
    each with the newest such training. The placeholder has no weights yet.
    """
    known = select(Concept.id, Concept.token).where(
        Concept.owner_id == owner_id, Concept.token.in_(names), Concept.deleted_at.is_(None)
    )
    token_of = {row.id: row.token for row in session.execute(known)}
    live = select(Job).where(
        Job.owner_id == owner_id, Job.kind == "train", Job.state.in_(("blocked", "queued", "running")),
        Job.cancel_requested_at.is_(None),
    )  # fmt: skip
    if base is not None:
        live = live.where(Job.base == base)
    found: dict[str, tuple[Placeholder, Job]] = {}
    for job in session.scalars(live.order_by(Job.id)) if token_of else ():
        vectors = int(job.spec["params"].get("vectors", 1))
        for taught in job.spec["concepts"]:
            if taught["id"] in token_of:
                later = Placeholder(taught["token"], taught["class_noun"], vectors, "")
                found[token_of[taught["id"]]] = later, job
    return found


def placeholder(weights: ConceptWeights, taught: str) -> Placeholder:
    """What weights teach under a token, from their manifest."""
    manifest = WeightsManifest.model_validate(weights.manifest)
    entry = next(each for each in manifest.tokens if each.token == taught)
    return Placeholder(entry.token, entry.class_noun, entry.vectors, weights.id)


def untrained(session: Session, owner_id: str, names: list[str]) -> set[str]:
    """Which of the names are tokens of the owner's concepts at all."""
    query = select(Concept.token).where(
        Concept.owner_id == owner_id, Concept.token.in_(names), Concept.deleted_at.is_(None)
    )
    return set(session.scalars(query))


def check(session: Session, owner_id: str, prompt: str, base: str | None = None) -> PromptReport:
    """How a prompt reads and counts, for the box; nothing is refused except an unknown base."""
    description = bases.with_tokenizer(session, bases.choose(session, base).id)
    names, text = tokens(prompt), normal(prompt)
    known = lookup(session, owner_id, names, description.id)
    later = being_taught(session, owner_id, [name for name in names if name not in known], description.id)
    known |= {name: taught for name, (taught, _) in later.items()}
    text = resolved(text, known)
    vectors = {each.token: each.vectors for each in known.values()}
    return PromptReport(
        tokens=counter(description.hash, description.tokenizer_json)(text, vectors),
        limit=description.prompt_limit_tokens,
        text=text,
        awaited=[name for name in names if name in later],
        unknown=[name for name in names if name not in known],
    )


def require_fit(
    session: Session, base_id: str, text: str, vectors: Mapping[str, int], pointer: str = "/prompt"
) -> None:
    """Invalid ``prompt-too-long`` when the encoder would have to cut the text."""
    description = bases.with_tokenizer(session, base_id)
    count = counter(description.hash, description.tokenizer_json)(text, vectors)
    limit = description.prompt_limit_tokens
    if count > limit:
        raise Invalid.at(
            pointer,
            f"The prompt has {count} tokens; the text encoder reads {limit}. Shorten it.",
            code="prompt-too-long",
            tokens=count,
            limit=limit,
        )


Counter = Callable[[str, Mapping[str, int]], int]


@lru_cache(maxsize=8)
def counter(_base_hash: str, tokenizer_json: str) -> Counter:
    """Counts the tokens of an encoder's text, start and end included; a placeholder counts its vectors."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    frame = len(tokenizer.encode("", add_special_tokens=True).ids)

    def count(text: str, vectors: Mapping[str, int]) -> int:
        total, start, pieces = frame, 0, []
        for match in _PLACEHOLDER.finditer(text):
            if match[1] in vectors:
                pieces.append(text[start : match.start()])
                total, start = total + vectors[match[1]], match.end()
        pieces.append(text[start:])
        return total + sum(len(tokenizer.encode(piece, add_special_tokens=False).ids) for piece in pieces)

    return count
