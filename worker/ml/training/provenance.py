"""Where weights come from: the header of what was learned, and what a checkpoint belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from pydantic import BaseModel

from backend.schemas.methods.card import MethodCard
from backend.schemas.weights import Side, TaughtToken, WeightsManifest
from worker.ml.concept_weights import CODE_VERSION, ConceptWeights
from worker.ml.errors import MethodUnsupported, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.training.lessons import ConceptExamples


def check_served(card: MethodCard, model: DiffusionModel) -> None:
    """Raises `MethodUnsupported` where the base model cannot be taught by the method."""
    if card.name not in model.description.methods:
        raise MethodUnsupported(f"{model.description.title} cannot be taught by {card.title}.")


def taught_tokens(concepts: Sequence[ConceptExamples]) -> list[TaughtToken]:
    """One vector a placeholder, used before its class noun."""
    return [TaughtToken(token=c.token, class_noun=c.class_noun, kind=c.kind) for c in concepts]


def manifest_of(
    card: MethodCard,
    model: DiffusionModel,
    tokens: Sequence[TaughtToken],
    params: BaseModel,
    *,
    seed: int,
    steps: int,
) -> WeightsManifest:
    """The header of weights that were learned this way, after ``steps`` steps."""
    description = model.description
    side: Side = "text" if card.side(params) == "text" else "weights"
    return WeightsManifest(
        method=card.name,
        side=side,
        base=description.id,
        base_family=description.family,
        base_hash=description.hash,
        prediction_type=model.prediction_type,
        tokens=list(tokens),
        params=params.model_dump(mode="json"),
        seed=seed,
        steps=steps,
        code_version=CODE_VERSION,
    )


def check_base(model: DiffusionModel, weights: ConceptWeights) -> None:
    """Raises `WeightsInvalid` unless the weights were trained on this very base model."""
    made_for = weights.manifest
    if made_for.base_hash != model.description.hash or made_for.prediction_type != model.prediction_type:
        raise WeightsInvalid(
            f"These weights were trained on {made_for.base}, not on {model.description.id}: "
            "they are differences from that base model and mean nothing elsewhere."
        )


def fingerprint(
    method: str,
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    params: BaseModel,
    seed: int,
) -> str:
    """sha256 over everything a training's result depends on: a checkpoint of anything else is not its own."""
    everything = {
        "method": method,
        "base": model.description.hash,
        "params": params.model_dump(mode="json"),
        "seed": seed,
        "concepts": [
            [
                c.token,
                c.class_noun,
                c.kind,
                [hashlib.sha256(photo.read_bytes()).hexdigest() for photo in c.photos],
            ]
            for c in concepts
        ],
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
