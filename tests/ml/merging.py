"""Weights to merge: random ones of the methods that can be made by hand, tiny trainings of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from backend.schemas.methods import CARDS
from backend.schemas.weights import TaughtToken
from tests.ml.teaching import teach
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import ConceptExamples
from worker.ml.streams import rng
from worker.ml.taught_words import rare_rows, token_tensors
from worker.ml.training.provenance import manifest_of


def key_value(model: DiffusionModel) -> dict[str, torch.Tensor]:
    """{name: weight} of every key and value matrix."""
    return {site.name: site.weight for layer in model.cross_attention() for site in (layer.key, layer.value)}


def made(
    model: DiffusionModel,
    token: str,
    noun: str,
    *,
    method: str = "custom-diffusion",
    seed: int = 0,
    size: float = 0.05,
    learned_word: bool = True,
    **params: Any,
) -> ConceptWeights:
    """Random weights of Custom Diffusion, Textual Inversion or LoRA (on keys and values) that teach one word."""
    draw = rng(seed, f"made/{method}", 0)

    def random(*shape: int) -> torch.Tensor:
        return size * torch.randn(shape, generator=draw)

    rows = rare_rows(model, [token])
    tensors = token_tensors(rows)
    if learned_word:
        tensors[f"token.{token}.learned"] += 4 * random(*tensors[f"token.{token}.learned"].shape)
    for name, weight in key_value(model).items():
        out, inner = weight.shape
        if method == "custom-diffusion":
            tensors[f"site.{name}.delta"] = random(out, inner)
        if method == "lora":
            tensors[f"site.{name}.down"] = random(2, inner) / size
            tensors[f"site.{name}.up"] = random(out, 2)
            tensors[f"site.{name}.alpha"] = torch.tensor(2.0)
    given = {"attention": "key-value", "rank": 2, **params} if method == "lora" else params
    chosen = CARDS[method].params_type(**given)
    taught = [TaughtToken(token=token, class_noun=noun, kind="subject")]
    return ConceptWeights(manifest_of(CARDS[method], model, taught, chosen, seed=seed, steps=1), tensors)


def taught(
    model: DiffusionModel, token: str, noun: str, folder: Path, photos: list[Path], method: str, **params: Any
) -> ConceptWeights:
    """Weights of a tiny training of any method."""
    concept = ConceptExamples(token, noun, "subject", list(photos))
    return teach(model, [concept], folder, method=method, **params)
