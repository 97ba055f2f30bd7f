"""Judges of transformers' own classes with tiny shapes and random weights, as folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from tests.ml.tiny_base import POSITIONS, tiny_tokenizer

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_clip(folder: Path, seed: int = 2) -> Path:
    """A CLIPModel for 28 px pictures with its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text = {
        **SMALL, "intermediate_size": 64, "vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**SMALL, "intermediate_size": 64, "image_size": 28, "patch_size": 7}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_dinov2(folder: Path, seed: int = 3) -> Path:
    """A Dinov2Model; pictures of 224 px, as the real ones, in large patches."""
    torch.manual_seed(seed)
    Dinov2Model(Dinov2Config(**SMALL, image_size=224, patch_size=56)).save_pretrained(folder)
    return folder


def write_vit(folder: Path, seed: int = 4) -> Path:
    """A ViTModel for 32 px pictures, as DINO's first version is."""
    torch.manual_seed(seed)
    ViTModel(ViTConfig(**SMALL, intermediate_size=64, image_size=32, patch_size=8)).save_pretrained(folder)
    return folder
