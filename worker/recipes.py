"""How a picture says what made it: its recipe, and the two text chunks of its PNG (product 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from backend.schemas.executor import ImageDone
from backend.schemas.generations import (
    SCHEDULERS,
    ActingWeights,
    GenerateSpec,
    GuidedAttention,
    ImageRecipe,
    PinnedRegion,
)
from backend.schemas.presence import Presence
from backend.schemas.version import VERSION

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo


def image_recipe(
    spec: GenerateSpec,
    index: int,
    seed: int | None = None,
    presence: Sequence[Presence] = (),
    attention: GuidedAttention | None = None,
) -> ImageRecipe:
    """All that draws image ``index`` of the job again. ``seed`` and ``attention`` are others than the spec's where the
    picture was tried again.
    """
    scale, attended = spec.attention_guidance, spec.attention_concepts
    if attention is not None:
        scale, attended = attention.scale, attention.concepts
    return ImageRecipe(
        prompt=spec.prompt, text=spec.text, negative_prompt=spec.negative_prompt, base=spec.base,
        base_hash=spec.base_hash,
        weights=spec.layout.whole if spec.layout else acting(spec),
        seed=(spec.seed + index) % 2**32 if seed is None else seed, presence=list(presence),
        num_inference_steps=spec.num_inference_steps, attention_guidance=scale, attention_concepts=attended,
        guidance_scale=spec.guidance_scale, scheduler=spec.scheduler, width=spec.width, height=spec.height,
        code_version=VERSION, **_regions(spec),
    )  # fmt: skip


def published_recipe(spec: GenerateSpec, done: ImageDone) -> ImageRecipe:
    """Of a picture that an executor drew, which chooses no more than the spec leaves to it."""
    check = spec.check
    return image_recipe(
        spec,
        done.index,
        done.seed if check is not None else None,
        done.presence,
        done.attention if check is not None and check.guidance_of_missing else None,
    )


def taught_tokens(spec: GenerateSpec) -> dict[str, str]:
    """{concept: token in the encoder's text}."""
    return {
        concept: token
        for used in spec.weights
        for concept, token in zip(used.concepts, used.tokens, strict=True)
    }


def acting(spec: GenerateSpec) -> list[ActingWeights]:
    """The weights of a spec as choices."""
    return [ActingWeights(id=used.file.id, scale=used.scale, gate=used.gate) for used in spec.weights]


def _regions(spec: GenerateSpec) -> dict[str, Any]:
    if spec.layout is None:
        return {}
    return {
        "regions": spec.layout.regions,
        "base_share": spec.layout.base_share,
        "late_base_share": spec.layout.late_base_share,
        "region_passes": spec.layout.passes,
    }


def parameters_text(recipe: ImageRecipe) -> str:
    """The ``parameters`` chunk in the form that A1111 writes and other programs parse."""
    titles: dict[str, str] = {scheduler.name: scheduler.title for scheduler in SCHEDULERS}
    lines = [recipe.text]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    facts = {
        "Steps": recipe.num_inference_steps,
        "Sampler": titles.get(recipe.scheduler, recipe.scheduler),
        "CFG scale": recipe.guidance_scale,
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": recipe.base_hash[:10],
        "Model": recipe.base,
        **({"Attention guidance": recipe.attention_guidance} if recipe.attention_guidance else {}),
        **({"Regions": json.dumps("; ".join(map(_told, recipe.regions)))} if recipe.regions else {}),
        "Version": f"moongate {recipe.code_version}",
    }
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in facts.items())])


def _told(region: PinnedRegion) -> str:
    """ "0.0 0.1 0.5 0.8 a <stark> dog": the corner, the size, the text."""
    return f"{region.x:.3g} {region.y:.3g} {region.width:.3g} {region.height:.3g} {region.text}"


def png_chunks(recipe: ImageRecipe) -> PngInfo:
    """``parameters`` and ``moongate`` as text chunks; there is no other metadata."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt("parameters", parameters_text(recipe))
    chunks.add_itxt("moongate", recipe.model_dump_json())
    return chunks
