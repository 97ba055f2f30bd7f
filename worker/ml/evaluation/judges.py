"""The judges that grade toyworld's pictures: one reads pictures against words, one tells individuals apart.

* `ImageTextJudge`: an image tower and a text tower with a common space (CLIP's objective; Radford et al.
  2021), for prompt similarity, drift and multiple choice. Its text tower is its own: only the token ids are
  the base model's, so that the judge does not share the errors of the text encoder it grades.
* `SubjectJudge`: an image encoder trained so that two pictures of one individual agree and two individuals of
  one class do not (Khosla et al. 2020, supervised contrastive), for subject similarity. Held-out subjects are
  never among its examples.

Both are small residual networks on 64 px pictures; `worker.ml.toyworld.judge_training` makes them. Pictures
are float32 [B, 3, H, W] in [-1, 1] and are resized to 64 px; features are float32 rows of unit length,
computed in evaluation mode without gradients.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from transformers import CLIPTokenizer

SIDE_PX = 64
POSITIONS = 40
CHANNELS = (32, 64, 128, 160)
FEATURES = 128
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 96, 2, 4
BATCH = 64
IMAGE_TEXT_FILE, SUBJECT_FILE = "image_text.safetensors", "subject.safetensors"


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut: [B, c_in, h, w] -> [B, c_out, h / stride, w / stride]."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(c_out)
        self.second = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.first_norm(self.first(x)))
        out: Tensor = torch.relu(self.shortcut(x) + self.second_norm(self.second(inner)))
        return out


class ImageTower(nn.Module):
    """[B, 3, 64, 64] in [-1, 1] -> pooled [B, 320] (mean and maximum over places); 0.75 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        first = CHANNELS[0]
        self.stem = nn.Conv2d(3, first, 5, 2, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(first)
        steps = zip((first, *CHANNELS[:-1]), CHANNELS, (1, 2, 2, 2), strict=True)
        self.blocks = nn.Sequential(*(Block(c_in, c_out, stride) for c_in, c_out, stride in steps))

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.blocks(torch.relu(self.stem_norm(self.stem(pixels))))
        return torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], 1)


class TextTower(nn.Module):
    """Token ids [B, T] -> [B, TEXT_WIDTH]: a small transformer, mean over the positions up to the first end
    token.
    """

    def __init__(self, vocabulary: int, end_id: int) -> None:
        super().__init__()
        self.end_id = end_id
        self.tokens = nn.Embedding(vocabulary, TEXT_WIDTH)
        self.places = nn.Parameter(torch.randn(POSITIONS, TEXT_WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(
            TEXT_WIDTH,
            TEXT_HEADS,
            4 * TEXT_WIDTH,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, TEXT_LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(TEXT_WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        ended = (ids == self.end_id).long().cumsum(1)
        padding = (ended > 1) | ((ended == 1) & (ids != self.end_id))
        length = int((~padding).sum(1).max())
        ids, padding = ids[:, :length], padding[:, :length]
        hidden: Tensor = self.layers(self.tokens(ids) + self.places[:length], src_key_padding_mask=padding)
        kept = (~padding)[..., None].float()
        pooled: Tensor = (self.norm(hidden) * kept).sum(1) / kept.sum(1)
        return pooled


class ImageTextJudge(nn.Module):
    """Both towers with their projections into [B, FEATURES] unit rows, and the logarithm of the inverse
    temperature.
    """

    def __init__(self, vocabulary: int, end_id: int) -> None:
        super().__init__()
        self.images = ImageTower()
        self.image_projection = nn.Linear(2 * CHANNELS[-1], FEATURES)
        self.texts = TextTower(vocabulary, end_id)
        self.text_projection = nn.Linear(TEXT_WIDTH, FEATURES)
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def encode_images(self, pixels: Tensor) -> Tensor:
        return normalize(self.image_projection(self.images(pixels)), dim=1)

    def encode_texts(self, ids: Tensor) -> Tensor:
        return normalize(self.text_projection(self.texts(ids)), dim=1)


class SubjectJudge(nn.Module):
    """Image tower and projection into [B, FEATURES] unit rows."""

    def __init__(self) -> None:
        super().__init__()
        self.images = ImageTower()
        self.projection = nn.Linear(2 * CHANNELS[-1], FEATURES)

    def forward(self, pixels: Tensor) -> Tensor:
        return normalize(self.projection(self.images(pixels)), dim=1)


@dataclass
class Judges:
    """Both judges, in evaluation mode. ``tokenizer`` is the base model's. ``hash``: sha256 of both weight
    files, named by every result, because a number means nothing without its judge.
    """

    image_text: ImageTextJudge
    subject: SubjectJudge
    tokenizer: Any
    hash: str

    @torch.no_grad()
    def image_text_features(self, pixels: Tensor) -> Tensor:
        """What a picture shows, in words' space: [B, 3, H, W] in [-1, 1] -> [B, FEATURES], unit rows."""
        return torch.cat([self.image_text.encode_images(part) for part in torch.split(_sized(pixels), BATCH)])

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        """[len(texts), FEATURES], unit rows. Raises ValueError for a text beyond the base's positions:
        nothing is cut.
        """
        rows: list[list[int]] = self.tokenizer(texts, padding="max_length", max_length=POSITIONS)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > POSITIONS:
                raise ValueError(f"{len(row)} tokens: {text}")
        return torch.cat(
            [self.image_text.encode_texts(part) for part in torch.split(torch.tensor(rows), BATCH)]
        )

    @torch.no_grad()
    def subject_features(self, pixels: Tensor) -> Tensor:
        """Which individual a picture shows: [B, 3, H, W] in [-1, 1] -> [B, FEATURES], unit rows."""
        return torch.cat([self.subject(part) for part in torch.split(_sized(pixels), BATCH)])

    def prompt_choice(self, pixels: Tensor, candidates: list[str]) -> Tensor:
        """Index of the candidate that fits each picture best, [B]."""
        return (self.image_text_features(pixels) @ self.text_features(candidates).T).argmax(1)


def _sized(pixels: Tensor) -> Tensor:
    if pixels.shape[-2:] == (SIDE_PX, SIDE_PX):
        return pixels.float()
    return interpolate(
        pixels.float(), (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True, align_corners=False
    )


def load_judges(folder: Path) -> Judges:
    """The judges in ``folder``, which lies beside the ``tokenizer`` of its base model. Stored in half, used
    in float32.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder.parent / "tokenizer", local_files_only=True)
    image_text = ImageTextJudge(len(tokenizer), int(tokenizer.eos_token_id))
    subject = SubjectJudge()
    digest = hashlib.sha256()
    for judge, name in ((image_text, IMAGE_TEXT_FILE), (subject, SUBJECT_FILE)):
        digest.update((folder / name).read_bytes())
        stored = load_file(folder / name)
        judge.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in stored.items()}
        )
        judge.requires_grad_(False).eval()
    return Judges(image_text, subject, tokenizer, digest.hexdigest())
