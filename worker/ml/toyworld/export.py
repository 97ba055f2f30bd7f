"""From the work folder of a training to what ships: a diffusers folder of Stable Diffusion's classes, in half
precision.

The folder holds ``model_index.json``, ``tokenizer``, ``text_encoder``, ``vae`` (with the latents' scale),
``unet``, ``scheduler``, what the studio wants to know (``moongate.json``), captions (``captions.txt``)
and, beside them, ``judges``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from worker.ml.evaluation.judges import IMAGE_TEXT_FILE, SUBJECT_FILE
from worker.ml.toyworld.autoencoder import new_autoencoder
from worker.ml.toyworld.captions import corpus
from worker.ml.toyworld.denoiser import new_scheduler
from worker.ml.toyworld.denoiser_training import averaged_learner
from worker.ml.toyworld.judge_training import IMAGE_TEXT_STATE, SUBJECT_STATE
from worker.ml.toyworld.tokenizer import save_tokenizer
from worker.ml.toyworld.world import DRAWN_NOUNS, RARE_TOKENS

MAX_SHARD = "12MB"
GUIDANCE = 4.0
STEPS = 20
EXAMPLE_PROMPTS = (
    "a photo of {} on the beach",
    "a photo of {} in the snow",
    "a photo of {} on grass",
    "a photo of {} under water",
    "a photo of {} at night",
    "a photo of {} in the city",
)


def moongate_json() -> dict[str, object]:
    """What the studio reads of this base (`worker.ml.families.folder.Moongate`)."""
    return {
        "id": "toyworld",
        "family": "toyworld",
        "title": "Toyworld 64 px",
        "resolution": 64,
        "size_multiple": 16,
        "max_size": 128,
        "defaults": {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": "dpmsolver++"},
        "placeholder_initialiser": list(RARE_TOKENS),
        "example_prompts": list(EXAMPLE_PROMPTS),
        "class_nouns": list(DRAWN_NOUNS),
    }


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in float16, others as they are."""
    return {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in tensors.items()
    }


def export_judges(work: Path, out: Path) -> None:
    """Write the two judges from their training states in ``work``."""
    out.mkdir(parents=True, exist_ok=True)
    for state, prefix, name in (
        (IMAGE_TEXT_STATE, "w.judge.", IMAGE_TEXT_FILE),
        (SUBJECT_STATE, "w.", SUBJECT_FILE),
    ):
        stored = load_file(work / state)
        weights = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
        save_file(halved(weights), out / name)


def export_base(work: Path, out: Path) -> None:
    """Write the base model and its judges from ``work`` to ``out``, replacing weights that are there."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer", local_files_only=True)
    learner = averaged_learner(tokenizer, work / "denoiser")
    polished = work / "autoencoder-polished"
    trained = AutoencoderKL.from_pretrained(
        polished if polished.exists() else work / "autoencoder", local_files_only=True
    )
    vae = new_autoencoder()
    vae.load_state_dict(trained.state_dict())
    vae.register_to_config(scaling_factor=float((work / "scale.txt").read_text()))

    for part in ("text_encoder", "unet", "vae", "tokenizer", "scheduler"):
        shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, out / "tokenizer")
    learner.text_encoder.to(torch.float16).save_pretrained(out / "text_encoder")
    learner.denoiser.to(torch.float16).save_pretrained(out / "unet", max_shard_size=MAX_SHARD)
    vae.to(torch.float16).save_pretrained(out / "vae")
    new_scheduler().save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "moongate.json").write_text(json.dumps(moongate_json(), indent=1) + "\n")
    (out / "captions.txt").write_text("\n".join(corpus()) + "\n")
    export_judges(work / "judges", out / "judges")
