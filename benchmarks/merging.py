"""What a closed-form merge costs: 2 to 8 concepts on the shapes of large base models (methods.md 6.6).

Matrices and changes are random: cost depends on shapes. The text encoder has the size of SD 1.5's; for SDXL, whose two
encoders give 2048 numbers a token together, a small one of that width stands in. Weights are in memory, and the caption
factor is kept, as it is for every merge but the first on a text encoder: that one is measured by itself. On one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from backend.schemas.merges.closed_form import ClosedFormParams
from backend.schemas.methods import CARDS
from backend.schemas.weights import TaughtToken
from benchmarks.environment import environment
from benchmarks.shapes import SCHEDULE, byte_tokenizer, described
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families.base import CrossAttention, Site
from worker.ml.families.stable_diffusion import StableDiffusion
from worker.ml.merges import MERGES, MergeInput
from worker.ml.run import InProcessRun
from worker.ml.streams import rng
from worker.ml.taught_words import rare_rows, token_tensors
from worker.ml.training.provenance import manifest_of

NOUNS = ("d", "c", "t", "b", "o", "g", "r", "h")
"""Of one token each: the tokenizer knows single bytes, a real one these words."""


class TextAndMatrices(StableDiffusion):
    """A text encoder and the key and value matrices of a large denoiser; the denoiser itself is a small one."""

    def __init__(self, widths: list[int], text: Mapping[str, int], captions: int) -> None:
        tokenizer = byte_tokenizer(77)
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        channels = {"block_out_channels": (32,), "norm_num_groups": 8}
        super().__init__(
            described("matrices", "stable-diffusion", 64, 77),
            tokenizer=tokenizer,
            text_encoder=CLIPTextModel(CLIPTextConfig(max_position_embeddings=77, **ids, **text)),
            autoencoder=AutoencoderKL(**channels),
            denoiser=UNet2DConditionModel(
                **channels,
                layers_per_block=1,
                cross_attention_dim=text["hidden_size"],
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
            ),
            scheduler_config={**SCHEDULE, "prediction_type": "epsilon"},
            placeholder_initialiser=None,
            captions=tuple(f"a {a} by {b} no {n}" for n in range(100) for a in NOUNS for b in NOUNS)[
                : captions * 10 // 9
            ],
        )
        inner = text["hidden_size"]

        def site(name: str, width: int) -> Site:
            module = torch.nn.Linear(inner, width, bias=False).requires_grad_(False)
            return Site(name, "cross-attention", module)

        self.layers = [
            CrossAttention(f"layers.{at}", site(f"layers.{at}.to_k", width), site(f"layers.{at}.to_v", width))
            for at, width in enumerate(widths)
        ]

    def cross_attention(self) -> list[CrossAttention]:
        return self.layers

    def sites(self) -> list[Site]:
        return [site for layer in self.layers for site in (layer.key, layer.value)]


SHAPES: dict[str, tuple[list[int], dict[str, int]]] = {
    "sd15": (
        [320] * 5 + [640] * 5 + [1280] * 6,
        {
            "vocab_size": 49408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
    ),
    "sdxl": (
        [640] * 10 + [1280] * 60,
        {
            "vocab_size": 1000,
            "hidden_size": 2048,
            "intermediate_size": 2048,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
        },
    ),
}


def concept(model: StableDiffusion, number: int, rank: int) -> ConceptWeights:
    """Custom Diffusion's dense changes for rank 0, else LoRA's factors on keys and values."""
    draw = rng(number, "merging", 0)
    token = f"concept{number}"
    tensors = token_tensors(rare_rows(model, [token]))
    tensors[f"token.{token}.learned"] += 0.02 * torch.randn(1, model.word_rows("a").shape[1], generator=draw)
    for layer in model.cross_attention():
        for each in (layer.key, layer.value):
            out, inner = each.weight.shape
            parts: dict[str, Tensor] = {"delta": 2e-3 * torch.randn(out, inner, generator=draw)}
            if rank:
                down, up = torch.randn(rank, inner, generator=draw), torch.randn(out, rank, generator=draw)
                parts = {"down": down, "up": 2e-3 * up, "alpha": torch.tensor(float(rank))}
            tensors |= {f"site.{each.name}.{part}": tensor for part, tensor in parts.items()}
    card = CARDS["lora" if rank else "custom-diffusion"]
    given = {"attention": "key-value", "rank": rank} if rank else {}
    taught = [TaughtToken(token=token, class_noun=NOUNS[number % len(NOUNS)], kind="subject")]
    manifest = manifest_of(card, model, taught, card.params_type(**given), seed=number, steps=1)
    return ConceptWeights(manifest, tensors)


def measure(shape: str, concepts: int, rank: int, captions: int, rounds: int) -> dict[str, Any]:
    """Seconds of the first merge and the median of the next, and what the largest of them proved."""
    widths, text = SHAPES[shape]
    model = TextAndMatrices(widths, text, captions)
    inputs = [MergeInput(str(number), concept(model, number, rank)) for number in range(concepts)]
    params, merge = ClosedFormParams(captions=captions), MERGES["closed-form"]

    def seconds(count: int) -> float:
        """The thread's own processor time, so that other programs on the machine count as little as they can."""
        began = time.thread_time()
        merge.merge(model, inputs[:count], params, InProcessRun())
        return time.thread_time() - began

    first = seconds(2)
    counts = [count for count in (2, 4, 8) if count <= concepts]
    repeated = {str(count): median(seconds(count) for _ in range(rounds)) for count in counts}
    made = merge.merge(model, inputs, params, InProcessRun())
    told = made.report.model_dump(exclude={"sites", "inputs", "notes", "seconds"})
    return {
        "matrices": 2 * len(widths),
        "width": text["hidden_size"],
        "rank_of_inputs": rank or None,
        "first_merge_s": round(first, 3),
        "seconds": {count: round(taken, 3) for count, taken in repeated.items()},
        "bytes_of_the_result": len(made.weights.to_bytes()),
        "report": told,
    }


def run(path: Path, results: Path, work: Path, only: list[str]) -> None:
    """One result file for the experiment; a shape that is there already is not measured again."""
    experiment = json.loads(path.read_text())
    target = results / f"{path.stem}.json"
    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {"shapes": {}}
    for shape, asked in experiment["shapes"].items():
        if shape in known["shapes"] or (only and shape not in only):
            continue
        known["environment"] = environment()
        known["shapes"][shape] = measure(shape, **asked, rounds=experiment["rounds"])
        target.write_text(json.dumps(known, indent=2) + "\n")
