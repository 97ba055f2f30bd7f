"""Base models of given shapes with random weights: cost depends on shapes, not on what a model knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from backend.schemas.bases import Backbone, BaseDescription, SamplingDefaults
from backend.schemas.methods import CARDS
from worker.ml.families.stable_diffusion import StableDiffusion

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


EXAMPLES = ["a photo of a {} on the beach", "a photo of a {} in the snow", "a photo of a {} at night"]


def byte_tokenizer(positions: int) -> CLIPTokenizer:
    """Bytes and nothing else: enough where texts need only be of a certain length."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={entry: place for place, entry in enumerate(entries)}, merges=[], model_max_length=positions
    )


def described(name: str, backbone: Backbone, resolution: int, positions: int) -> BaseDescription:
    """A base model of no hash."""
    return BaseDescription(
        id=name,
        family="sd15",
        title=name,
        resolution=resolution,
        size_multiple=8,
        max_size=resolution,
        hash="0" * 64,
        methods=list(CARDS),
        defaults=SamplingDefaults(),
        prompt_limit_tokens=positions,
        tokenizer_json="",
        example_prompts=EXAMPLES,
        backbone=backbone,
    )


def build(
    *,
    name: str,
    backbone: Backbone,
    resolution: int,
    positions: int,
    prediction_type: str,
    text: Any,
    autoencoder: Any,
    denoiser: Any,
) -> StableDiffusion:
    """Real classes, random weights; ``text``, ``autoencoder``, ``denoiser``: their configurations."""
    tokenizer = byte_tokenizer(positions)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return StableDiffusion(
        described(name, backbone, resolution, positions),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(CLIPTextConfig(max_position_embeddings=positions, **ids, **text)),
        autoencoder=AutoencoderKL(sample_size=resolution, latent_channels=4, **autoencoder),
        denoiser=UNet2DConditionModel(**denoiser),
        scheduler_config={**SCHEDULE, "prediction_type": prediction_type},
        placeholder_initialiser=None,
    )


def toyworld() -> StableDiffusion:
    """The shape of the shipped base model at 64 px."""
    return build(
        name="toyworld-shape",
        backbone="small",
        resolution=64,
        positions=40,
        prediction_type="v_prediction",
        text={
            "vocab_size": 1000,
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
        },
        autoencoder={
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "layers_per_block": 1,
            "norm_num_groups": 8,
        },
        denoiser={
            "sample_size": 16,
            "block_out_channels": (64, 128, 160),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 192,
            "attention_head_dim": (2, 4, 5),
            "norm_num_groups": 16,
        },
    )


def sd15() -> StableDiffusion:
    """The shape of Stable Diffusion 1.5 at 512 px: 860 million parameters in the denoiser."""
    return build(
        name="sd15-shape",
        backbone="stable-diffusion",
        resolution=512,
        positions=77,
        prediction_type="epsilon",
        text={
            "vocab_size": 49408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        autoencoder={
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
        },
        denoiser={
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "layers_per_block": 2,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
    )


SHAPES: dict[str, Callable[[], StableDiffusion]] = {"toyworld": toyworld, "sd15": sd15}
