"""Prior images: pictures of the class, drawn by the untouched base model, that keep the class where it was
(methods.md 4).

They are kept as latents, as the sampler leaves them: the denoiser's own distribution, and neither decoded nor
encoded. They are cached in a directory named by everything they depend on and by nothing else, so the next
concept of the class finds them. Each file appears by a rename; whole chunks are drawn with a fixed batch, so
an interrupted set continues with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from backend.schemas.prior_images import CHUNK, whole_chunks
from worker.ml.conditioning import Prompt
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.sampling.latents import ConditioningCache, Picture, sample_latents

SEED = 0
"""Of all prior images: were it the training's, no concept could use another's."""
FORMAT = 2


@dataclass(frozen=True, eq=False)
class PriorImages:
    """latents [N, C, h, w] fp32 and the caption of each."""

    latents: Tensor
    captions: tuple[str, ...]


def ensure_prior(
    model: DiffusionModel, prompts: Sequence[str], *, count: int, steps: int, cache_dir: Path, run: Run
) -> PriorImages:
    """At least ``count`` prior images (rounded up to whole chunks), one prompt a chunk, made where they are
    missing.

    Scheduler and guidance are the base model's defaults. Resumable: what is in the cache is not drawn again.
    ``run.step("prior", ...)`` every solver step. Raises what `Run.step` raises, `PromptTooLong`.
    """
    defaults = model.description.defaults
    directory = cache_dir / prior_key(model, prompts, steps)
    directory.mkdir(parents=True, exist_ok=True)
    count = whole_chunks(count)
    captions = tuple(prompts[index // CHUNK % len(prompts)] for index in range(count))
    found = {index: read_latents(directory / f"{index}.safetensors", model) for index in range(count)}
    chunks = [
        first
        for first in range(0, count, CHUNK)
        if any(found[i] is None for i in range(first, first + CHUNK))
    ]
    indices = [index for first in chunks for index in range(first, first + CHUNK)]
    size = model.description.resolution
    pictures = [
        Picture(
            prompt=Prompt(captions[index]),
            negative=Prompt("", negative=True),
            seed=(SEED + index) % 2**32,
            num_inference_steps=steps,
            guidance_scale=defaults.guidance_scale,
            scheduler=defaults.scheduler,
            width=size,
            height=size,
        )
        for index in indices
    ]
    drawn = sample_latents(model, pictures, run, "prior", batch_size=CHUNK, cache=ConditioningCache())
    for place, latents in drawn:
        index = indices[place]
        if found[index] is None:
            found[index] = latents.cpu()
            write_latents(directory / f"{index}.safetensors", latents, captions[index])
    kept = [latents for latents in found.values() if latents is not None]
    return PriorImages(torch.stack(kept).to(model.device), captions)


def prior_key(model: DiffusionModel, prompts: Sequence[str], steps: int) -> str:
    """Directory name: sha256 over all that prior images depend on, 32 hexadecimal digits."""
    description = model.description
    recipe = {
        "format": FORMAT,
        "base": description.hash,
        "dtype": str(model.dtype),
        "prompts": list(prompts),
        "scheduler": description.defaults.scheduler,
        "guidance_scale": description.defaults.guidance_scale,
        "steps": steps,
        "size": description.resolution,
        "seed": SEED,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]


def read_latents(path: Path, model: DiffusionModel) -> Tensor | None:
    """The latents of a cached file, or None where it is missing or not what it should be."""
    side = model.description.resolution // model.cell
    try:
        latents = safetensors.torch.load_file(path)["latents"]
    except (OSError, KeyError, ValueError, safetensors.SafetensorError):
        return None
    fits = latents.shape == (model.latent_channels, side, side) and bool(torch.isfinite(latents).all())
    return latents if fits else None


def write_latents(path: Path, latents: Tensor, caption: str) -> None:
    """Atomic: readers see the whole file or none."""
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    content = safetensors.torch.save({"latents": latents.cpu().contiguous()}, metadata={"caption": caption})
    with staged.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    staged.rename(path)
