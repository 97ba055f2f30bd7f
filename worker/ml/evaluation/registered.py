"""Judges that an administrator registers: folders of transformers' CLIPModel, and of Dinov2Model or ViTModel (DINO).

Prompt similarity and drift are CLIP's, subject similarity is DINO's (methods.md 14.1). A folder is in the layout that
transformers writes: ``config.json`` and ``model.safetensors``, for CLIP the tokenizer beside them, and optionally
``preprocessor_config.json``. Only safetensors are read, only local files, never code.

Preprocessing is done on tensors, because pictures come as tensors: the shorter side to ``size`` (bicubic,
antialiased), the centre ``crop_size``, mean and deviation by channel. Where the folder does not say, CLIP's numbers
are OpenAI's (224, 224) and the others ImageNet's (256, 224). Drift here is KID over CLIP's image features, not over
Inception's pool (Binkowski et al. 2018 leave the features open); it does not compare with published KID numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model, ViTModel

from backend.schemas.bases import JudgesDescription
from worker.ml.errors import BaseUnusable, JudgesUnusable
from worker.ml.families.folder import read_json

WEIGHTS = "model.safetensors"
BATCH = 16
TEXT_KIND, IMAGE_KINDS = "clip", {"dinov2": Dinov2Model, "vit": ViTModel}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Lens:
    """How a judge wants its pictures: shorter side and crop in pixels, mean and deviation in [0, 1]."""

    side_px: int
    crop_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 3, crop, crop], normalised float32."""
        height, width = pixels.shape[-2:]
        scale = self.side_px / min(height, width)
        # Never smaller than the crop: a folder may say a crop larger than its size.
        size = [max(self.crop_px, round(side * scale)) for side in (height, width)]
        sized = interpolate(
            (pixels.float() + 1) / 2, size, mode="bicubic", antialias=True, align_corners=False
        )
        top, left = ((side - self.crop_px) // 2 for side in size)
        cropped = sized[..., top : top + self.crop_px, left : left + self.crop_px].clamp(0, 1)
        mean, std = (torch.tensor(row, device=pixels.device)[:, None, None] for row in (self.mean, self.std))
        return (cropped - mean) / std


@dataclass
class RegisteredJudges:
    """A `panel.Panel` of two models in evaluation mode, float32, on one device."""

    clip: Any
    tokenizer: Any
    clip_lens: Lens
    image: Any
    image_lens: Lens
    hash: str

    @torch.no_grad()
    def image_text_features(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> CLIP's projected image features [B, d], unit rows."""
        rows = []
        for part in torch.split(pixels.to(self.clip.device), BATCH):
            seen = self.clip.vision_model(pixel_values=self.clip_lens(part)).pooler_output
            rows.append(normalize(self.clip.visual_projection(seen).float(), dim=1).cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        """CLIP's projected text features [len(texts), d], unit rows. Raises ValueError beyond its positions."""
        limit = int(self.clip.config.text_config.max_position_embeddings)
        rows = []
        for text in texts:
            ids: list[int] = self.tokenizer(text)["input_ids"]
            if len(ids) > limit:
                raise ValueError(f"{len(ids)} tokens, and the judge reads {limit}: {text}")
            read = self.clip.text_model(input_ids=torch.tensor([ids], device=self.clip.device)).pooler_output
            rows.append(normalize(self.clip.text_projection(read).float(), dim=1).cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def subject_features(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> the state of the class token after the last norm [B, d], unit rows."""
        rows = []
        for part in torch.split(pixels.to(self.image.device), BATCH):
            seen = self.image(pixel_values=self.image_lens(part)).last_hidden_state[:, 0]
            rows.append(normalize(seen.float(), dim=1).cpu())
        return torch.cat(rows)


def describe(folders: Sequence[Path]) -> JudgesDescription:
    """Who the folders' judges are, by configuration and bytes. Raises `JudgesUnusable`."""
    clip, image = _pair(folders)
    digest = hashlib.sha256()
    for folder in (clip, image):
        with (folder / WEIGHTS).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return JudgesDescription(
        name=f"{clip.resolve().name} and {image.resolve().name}", hash=digest.hexdigest()
    )


def load(folders: Sequence[Path], device: str = "cpu") -> RegisteredJudges:
    """Both judges, ready. Raises `JudgesUnusable`."""
    clip_folder, image_folder = _pair(folders)
    kind = IMAGE_KINDS[_kind(image_folder)]
    try:
        clip = _loaded(CLIPModel, clip_folder)
        tokenizer = CLIPTokenizer.from_pretrained(clip_folder, local_files_only=True)
        # DINO has no pooler; one that transformers would add is random and is never read.
        image = _loaded(kind, image_folder, **({"add_pooling_layer": False} if kind is ViTModel else {}))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise JudgesUnusable("A folder of registered judges cannot be loaded.") from error
    for model in (clip, image):
        model.requires_grad_(False).eval().to(device)
    side = int(clip.config.vision_config.image_size)
    # DINO's ViT reads pictures of its own size only; DINOv2 stretches its places to any.
    crop = int(image.config.image_size) if kind is ViTModel else 224
    return RegisteredJudges(
        clip,
        tokenizer,
        _lens(clip_folder, (side, side), CLIP_MEAN, CLIP_STD),
        image,
        _lens(image_folder, (round(crop * 256 / 224), crop), IMAGENET_MEAN, IMAGENET_STD),
        describe(folders).hash,
    )


def _loaded(kind: Any, folder: Path, **options: Any) -> Any:
    """The model with every one of its weights from the folder: transformers draws those that are missing at random."""
    model, told = kind.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        **options,
    )
    if told["missing_keys"] or told["mismatched_keys"]:
        raise JudgesUnusable(f"The judge {folder.name} lacks some of its weights.")
    return model


def _pair(folders: Sequence[Path]) -> tuple[Path, Path]:
    """The folder of CLIP and the folder of the image judge. Raises `JudgesUnusable`."""
    kinds = [(_kind(folder), folder) for folder in folders]
    clips = [folder for kind, folder in kinds if kind == TEXT_KIND]
    images = [folder for kind, folder in kinds if kind in IMAGE_KINDS]
    if len(clips) != 1 or len(images) != 1 or len(kinds) != 2:
        found = ", ".join(kind or "unknown" for kind, _ in kinds)
        raise JudgesUnusable(
            f"Registered judges are one CLIP folder and one DINO folder (dinov2 or vit); found: {found}."
        )
    for folder in (clips[0], images[0]):
        if not (folder / WEIGHTS).is_file():
            raise JudgesUnusable(f"The judge {folder.name} lacks {WEIGHTS}; pickled weights are never read.")
        if any(folder.rglob("*.py")) or "auto_map" in _config(folder):
            raise JudgesUnusable(f"The judge {folder.name} brings code of its own, which is never run.")
    return clips[0], images[0]


def _kind(folder: Path) -> str:
    return str(_config(folder).get("model_type", ""))


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "config.json")
    except BaseUnusable:
        raise JudgesUnusable(f"The judge {folder.name} has no config.json that can be read.") from None


def _lens(
    folder: Path, defaults_px: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> Lens:
    """``defaults_px``: shorter side and crop where the folder is silent. Raises `JudgesUnusable`."""
    path = folder / "preprocessor_config.json"
    try:
        said = read_json(path) if path.is_file() else {}
        size = _pixels(said.get("size"))
        crop = _pixels(said.get("crop_size")) if said.get("do_center_crop", True) else 0
        mean, std = (
            tuple(map(float, said.get(f"image_{name}") or row))
            for name, row in (("mean", mean), ("std", std))
        )
    except (BaseUnusable, TypeError, ValueError):
        raise JudgesUnusable(f"The judge {folder.name} has a preprocessor that cannot be read.") from None
    return Lens(size or defaults_px[0], crop or size or defaults_px[1], mean, std)


def _pixels(said: Any) -> int:
    """Older versions write a number, newer ones {"shortest_edge": n} or {"height": n, "width": n}; 0: not said."""
    if isinstance(said, dict):
        said = said.get("shortest_edge") or said.get("height")
    return int(said or 0)
