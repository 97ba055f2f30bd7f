"""Concepts of different weights in one prompt: which compose freely, which the worker merges on the fly, which not."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import Concept, ConceptWeights, Job, WeightsConcept
from backend.schemas.methods import CARDS
from backend.schemas.weights import WeightsManifest

COMPOSES_FREELY = frozenset({"textual-inversion", "perfusion"})
"""Methods whose weights stand beside one another in one prompt without a merge."""


def own_scale(row: ConceptWeights) -> float:
    """What a prompt gets that names no scale; 1 in manifests from before there was calibration."""
    return float(row.manifest.get("scale", 1.0))


def require_one_edit(
    session: Session, rows: Sequence[ConceptWeights], needed: Sequence[Job], pointer: str = "/prompt"
) -> None:
    """Invalid ``needs-merge`` unless the weights, and those that the trainings will make, can share a prompt: all
    compose freely, or all are text side with one vector set a word, which the worker merges in closed form. Words of
    one name cannot share a prompt at all.
    """
    _require_different_words(session, rows, pointer)
    methods = [*(row.method for row in rows), *(str(job.spec["method"]) for job in needed)]
    if len(methods) < 2 or COMPOSES_FREELY.issuperset(methods):
        return
    if any(row.side != "text" for row in rows) or any(_will_be_weight_side(job) for job in needed):
        raise Invalid.at(
            pointer,
            "One of these concepts changes weights of the model itself, so it cannot share a prompt with others as it "
            "is. Train them together, merge them, or give each a region of the picture.",
            code="needs-merge",
        )
    if any(has_layered_words(row) for row in rows) or any(
        job.spec["params"].get("per_layer") for job in needed
    ):
        raise Invalid.at(
            pointer,
            "One of these concepts has a word for every layer (P+), which cannot be merged with changes of the model. "
            "Train them together, or give each a region of the picture.",
            code="needs-merge",
        )


def _require_different_words(session: Session, rows: Sequence[ConceptWeights], pointer: str) -> None:
    words = {
        row.id: [each.token for each in WeightsManifest.model_validate(row.manifest).tokens] for row in rows
    }
    every = [word for own in words.values() for word in own]
    for word in dict.fromkeys(every):
        if every.count(word) > 1:
            clashing = [weights_id for weights_id, own in words.items() if word in own]
            raise Invalid.at(pointer, _clash(session, word, clashing), code="needs-merge")


def _clash(session: Session, word: str, clashing: Sequence[str]) -> str:
    """What several files with one word are told: whose it is, and what to do."""
    query = (
        select(WeightsConcept.weights_id, Concept.id, Concept.name, Concept.token)
        .join(Concept, Concept.id == WeightsConcept.concept_id)
        .where(WeightsConcept.weights_id.in_(clashing), WeightsConcept.token == word)
    )
    found = {row.weights_id: (row.id, f"{row.name} (@{row.token})") for row in session.execute(query)}
    taught = [found[weights_id] for weights_id in clashing if weights_id in found]
    concepts = dict(taught)
    if len(taught) == len(clashing) and len(concepts) == 1:
        return f"Two of these files teach {taught[0][1]}. Choose one of them."
    who = " and ".join(concepts.values()) if len(concepts) > 1 else "Two of these files"
    return (
        f"{who} were taught with the same word <{word}>, so a prompt cannot tell them apart. Merge them, which gives "
        "each a word of its own, or train one again."
    )


def _will_be_weight_side(job: Job) -> bool:
    card = CARDS.get(str(job.spec["method"]))
    return card is None or card.side(card.params_type.model_validate(job.spec["params"])) != "text"


def has_layered_words(row: ConceptWeights) -> bool:
    """Whether a word of the weights has vectors of its own for every layer."""
    return any(taught.layers for taught in WeightsManifest.model_validate(row.manifest).tokens)
