"""Previews: what the concept draws as it stands, always with the same seeds, so that only learning moves the
pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from worker.ml.conditioning import Prompt, TextEdit
from worker.ml.families.base import DiffusionModel
from worker.ml.run import PreviewImage, Run
from worker.ml.sampling.latents import Picture, sample_latents
from worker.ml.sampling.pixels import to_uint8

MAX_STEPS = 12


def draw_previews(
    model: DiffusionModel, texts: Sequence[str], edit: TextEdit, seed: int, run: Run
) -> list[PreviewImage]:
    """One picture a text with ``edit`` at scale 1, at the base model's resolution and defaults, at most 12
    solver steps.

    Picture i draws with seed ``(seed + i) mod 2**32``. ``run.step("preview", ...)`` every solver step.
    """
    description = model.description
    defaults = description.defaults
    edits = ((edit, 1.0),)
    pictures = [
        Picture(
            prompt=Prompt(text, edits),
            negative=Prompt("", edits, negative=True),
            seed=(seed + index) % 2**32,
            num_inference_steps=min(defaults.num_inference_steps, MAX_STEPS),
            guidance_scale=defaults.guidance_scale,
            scheduler=defaults.scheduler,
            width=description.resolution,
            height=description.resolution,
        )
        for index, text in enumerate(texts)
    ]
    return [
        PreviewImage(
            place, texts[place], pictures[place].seed, to_uint8(model.decode_latents(latents[None]))[0]
        )
        for place, latents in sample_latents(model, pictures, run, "preview")
    ]
