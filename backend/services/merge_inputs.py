"""What goes into a merge: weights that can be merged with one another, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import BaseModel, Concept, ConceptWeights, WeightsConcept
from backend.schemas.merges.card import MergeCard
from backend.schemas.merges.requests import MergeChoice
from backend.schemas.merges.taking import Contents, cannot_take
from backend.schemas.trainings import PinnedConcept
from backend.schemas.weights import WeightsManifest
from backend.services import owned
from backend.services.concepts import RESERVED_TOKENS
from backend.services.tensor_shapes import tensor_shapes
from backend.storage import Storage

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


def require_taken(session: Session, storage: Storage, card: MergeCard, inputs: Sequence[Input]) -> None:
    """Invalid where the merge cannot take one of the weights."""
    base = session.get(BaseModel, inputs[0].row.base)
    key_value = base.description.get("text_sites", {}) if base is not None else {}
    for place, each in enumerate(inputs):
        held = Contents(
            each.names,
            WeightsManifest.model_validate(each.row.manifest),
            partial(tensor_shapes, storage, each.row),
            key_value,
        )
        try:
            reason = cannot_take(card, held)
        except (OSError, ValueError):
            raise Invalid.at(
                f"/weights/{place}",
                f"The file of {each.names} cannot be read, so nobody can say whether it can be merged.",
                code="weights-unreadable",
            ) from None
        if reason:
            raise Invalid.at(f"/weights/{place}", reason, code="not-mergeable")


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
