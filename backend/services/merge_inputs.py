"""What goes into a merge: weights that can be merged with one another, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import BaseModel, Concept, ConceptWeights, WeightsConcept
from backend.schemas.merges.card import MergeCard, Takes
from backend.schemas.merges.requests import MergeChoice
from backend.schemas.methods import CARDS
from backend.schemas.trainings import PinnedConcept
from backend.services import mixing, owned
from backend.services.concepts import RESERVED_TOKENS

_ONE_METHOD: dict[Takes, str] = {"lora": "lora", "svdiff": "svdiff", "perfusion": "perfusion"}
_NOT_ADDITIVE = frozenset({"perfusion"})
"""Methods whose changes depend on the prompt, so that they do not add."""
_ALL_LAYERS = frozenset({"dreambooth"})
"""Methods that always change more than linear layers; of others the worker sees it in the file."""
LONGEST_TOKEN = 40


@dataclass(frozen=True)
class Input:
    """Weights with what they teach: {token in their file: concept}."""

    row: ConceptWeights
    scale: float
    taught: Mapping[str, Concept]

    @property
    def names(self) -> str:
        """What a person calls them: ``Stark and Mia``."""
        return " and ".join(concept.name for concept in self.taught.values()) or "These weights"


def gather(session: Session, owner_id: str, choices: Sequence[MergeChoice]) -> list[Input]:
    """The owner's weights in their order. NotFound for foreign ones; Invalid where they cannot become one."""
    for place, choice in enumerate(choices):
        if choice.id in {earlier.id for earlier in choices[:place]}:
            raise Invalid.at(f"/weights/{place}", "The same weights are named twice.", code="same-weights")
    found = [_input(session, owner_id, choice) for choice in choices]
    _require_one_base(session, found)
    _require_different_concepts(found)
    if not any(each.scale for each in found):
        raise Invalid.at(
            "/weights",
            "Every scale is 0, so nothing would be merged. Raise at least one.",
            code="nothing-to-merge",
        )
    return found


def require_taken(card: MergeCard, inputs: Sequence[Input]) -> None:
    """Invalid where the merge cannot take one of the weights."""
    for place, each in enumerate(inputs):
        if reason := cannot_take(card, each):
            raise Invalid.at(f"/weights/{place}", reason, code="not-mergeable")


def cannot_take(card: MergeCard, each: Input) -> str:
    """Why a merge cannot take these weights, as a sentence; empty when it can."""
    if card.takes == "text-kv":
        return _not_keys_and_values(card, each)
    learned = _title(each.row.method)
    if card.takes in ("additive", "linear-layers"):
        if each.row.method in _NOT_ADDITIVE:
            return (
                f"{each.names} was learned with {learned}, whose change depends on the prompt: it cannot be added up. "
                "Its words can share a prompt without a merge."
            )
        return _not_linear_layers(card, each) if card.takes == "linear-layers" else ""
    if each.row.method == _ONE_METHOD[card.takes]:
        return ""
    wanted = _title(_ONE_METHOD[card.takes])
    return f"{card.title} takes {wanted} alone, and {each.names} was learned with {learned}."


def _not_keys_and_values(card: MergeCard, each: Input) -> str:
    if each.row.side != "text":
        return (
            f"{each.names} changes more of the model than keys and values, which is all that {card.title} merges. "
            "Choose another merge, or train them together."
        )
    if mixing.has_layered_words(each.row):
        return (
            f"{each.names} has a word for every layer (P+), which {card.title} cannot merge. Such words can share a "
            "prompt with those of Textual Inversion without a merge."
        )
    return ""


def _not_linear_layers(card: MergeCard, each: Input) -> str:
    if each.row.method in _ALL_LAYERS:
        return (
            f"{each.names} was learned with {_title(each.row.method)}, which changes convolutions and norms too. "
            f"{card.title} takes changes of linear layers alone, as LoRA makes them."
        )
    if mixing.has_layered_words(each.row):
        return (
            f"{each.names} has a word for every layer (P+), and {card.title} needs one text for all layers."
        )
    return ""


def _title(method: str) -> str:
    return CARDS[method].title if method in CARDS else method


def result_tokens(inputs: Sequence[Input]) -> tuple[list[PinnedConcept], dict[str, dict[str, str]]]:
    """Every concept with its token in the merged file, and {weights: {token in their file: another one}} for tokens
    that earlier weights have already.
    """
    concepts: list[PinnedConcept] = []
    renames: dict[str, dict[str, str]] = {}
    written = {token for each in inputs for token in each.taught}
    used: set[str] = set()
    for each in inputs:
        for token, concept in each.taught.items():
            name = token if token not in used else _free(token, used | written | RESERVED_TOKENS)
            if name != token:
                renames.setdefault(each.row.id, {})[token] = name
            used.add(name)
            concepts.append(_pinned(concept, name))
    return concepts, renames


def _free(token: str, taken: set[str] | frozenset[str]) -> str:
    numbered = (f"{token[: LONGEST_TOKEN - 1 - len(str(n))]}-{n}" for n in count(2))
    return next(name for name in numbered if name not in taken)


def _pinned(concept: Concept, token: str) -> PinnedConcept:
    return PinnedConcept.model_validate(
        {
            "id": concept.id,
            "token": token,
            "class_noun": concept.class_noun,
            "kind": concept.kind,
            "photos": [],
        }
    )


def _input(session: Session, owner_id: str, choice: MergeChoice) -> Input:
    row = owned.get(session, ConceptWeights, owner_id, choice.id)
    links = session.execute(
        select(WeightsConcept.token, Concept)
        .join(Concept, Concept.id == WeightsConcept.concept_id)
        .where(WeightsConcept.weights_id == row.id, Concept.deleted_at.is_(None))
        .order_by(WeightsConcept.token)
    )
    return Input(row, choice.scale, {link.token: link.Concept for link in links})


def _require_one_base(session: Session, inputs: Sequence[Input]) -> None:
    first = inputs[0]
    for place, each in enumerate(inputs[1:], 1):
        if each.row.base != first.row.base:
            raise Invalid.at(
                f"/weights/{place}",
                f"{each.names} was learned on {each.row.base}, {first.names} on {first.row.base}. Only weights of "
                "one base model can be merged.",
                code="other-base",
            )
        if each.row.base_hash != first.row.base_hash:
            raise Invalid.at(
                f"/weights/{place}",
                f"{each.names} and {first.names} were learned on different versions of {first.row.base}. Train one of "
                "them again.",
                code="other-base",
            )
    known = session.scalar(select(BaseModel.hash).where(BaseModel.id == first.row.base))
    if known is not None and known != first.row.base_hash:
        raise Invalid.at(
            "/weights/0",
            f"{first.row.base} has changed since these weights were learned on it. Train them again.",
            code="base-changed",
        )


def _require_different_concepts(inputs: Sequence[Input]) -> None:
    seen: set[str] = set()
    for place, each in enumerate(inputs):
        for concept in each.taught.values():
            if concept.id in seen:
                raise Invalid.at(
                    f"/weights/{place}",
                    f"{concept.name} is taught by two of these weights. A merge has one version of each concept.",
                    code="same-concept",
                    concept=concept.id,
                )
        seen |= {concept.id for concept in each.taught.values()}
