"""A base model of the real classes of Stable Diffusion 1.x with tiny shapes and random weights, as a
diffusers folder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = [
    "away",
    "watercolor",
    "forest",
    "photo",
    "of",
    "a",
    "dog",
    "cat",
    "teapot",
    "on",
    "the",
    "beach",
    "in",
    "snow",
    "close",
    "up",
    "zoomed",
    "very",
    "small",
    "far",
    "painting",
    "style",
    "art",
    "red",
    "blue",
    "an",
    "owl",
    "night",
    "city",
    "grass",
    "room",
    "left",
    "right",
]
POSITIONS = 24
RESOLUTION = 32
CELL = 4


def tiny_tokenizer() -> CLIPTokenizer:
    """Byte-pair merges that build each of ``WORDS`` from the left, laid out like CLIP's vocabulary: bytes, word ends,
    merges, specials. Written down, not learned: the learner breaks ties by chance, other bytes in every process.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [*dict.fromkeys(merge for word in WORDS for merge in merges_of(word))]
    entries = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    entries = [*dict.fromkeys(entries), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: place for place, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


def merges_of(word: str) -> list[tuple[str, str]]:
    """``of`` is ``o`` and ``f</w>``."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    return [("".join(pieces[:place]), pieces[place]) for place in range(1, len(pieces))]


def write_tiny_base(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Writes the folder and returns it; about 4 MB."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=POSITIONS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    denoiser = UNet2DConditionModel(
        sample_size=RESOLUTION // CELL,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=RESOLUTION,
    )
    with torch.no_grad():  # a random denoiser hardly listens to its text: let these listen
        for name, weight in denoiser.named_parameters():
            if ".attn2." in name and weight.ndim == 2:
                weight.mul_(3.0)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
