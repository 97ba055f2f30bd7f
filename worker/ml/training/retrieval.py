"""Prior images from a library of captioned pictures: those whose captions say most nearly what the class prompt says
(Kumari et al. 2023, section 3.2, "Regularization dataset"; methods.md 4, "Data and prompts").

Similarity is the cosine of the base model's own text states at the end of text. The paper takes captions above 0.85 of
CLIP similarity; where there are too few of them the nearest others follow, and a note says so. Left out are pictures
that look like one already taken or like a photo that is taught, and captions that the encoder cannot read whole.

``<library>/index.json`` holds {name: {"file", "caption", "fingerprint"}} of sanitised pictures; entries with
``refused`` are passed over. Encoded latents are kept by the picture's content, so every concept shares them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from worker.ml.errors import InputInvalid, PromptTooLong
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.streams import rng
from worker.ml.training.augmentation import Draw, open_square, render
from worker.ml.training.prior import SEED, PriorImages, read_latents, write_latents

LIBRARY = "library"
"""Folder of the library below the directory of prior images."""
NEAR = 0.85
NEAR_BITS = 6
"""Difference hashes this close (of 64 bits) are almost certainly the same scene."""
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Captioned:
    """A picture of the library: local file, caption, 64-bit difference hash."""

    file: Path
    caption: str
    fingerprint: int


def read_library(library: Path) -> list[Captioned]:
    """Sound pictures by their files' names. Raises `InputInvalid` where there are none."""
    try:
        index = json.loads((library / "index.json").read_bytes())
    except (OSError, ValueError):
        index = {}
    found = {
        entry["file"]: Captioned(library / entry["file"], entry["caption"], int(entry["fingerprint"], 16))
        for entry in index.values()
        if "refused" not in entry
    }
    if not found:
        raise InputInvalid(
            "This studio has no folder of captioned pictures that prior images could be taken from. Whoever runs it "
            "names one in MOONGATE_PRIOR_FOLDER; or choose another prior."
        )
    return [found[name] for name in sorted(found)]


def retrieve_prior(
    model: DiffusionModel,
    wanted: str,
    *,
    count: int,
    photos: Sequence[Path],
    cache_dir: Path,
    run: Run,
    may_say: Callable[[str], bool] = lambda caption: True,
) -> PriorImages:
    """At most ``count`` pictures of ``cache_dir / "library"`` nearest to the text ``wanted``, none like ``photos``.

    ``may_say``: which captions are allowed. ``run.step("prior", ...)`` for each picture. Raises `InputInvalid`.
    """
    library = [each for each in read_library(cache_dir / LIBRARY) if may_say(each.caption)]
    readable = [each for each in library if _readable(model, each.caption)]
    states = text_ends(model, [wanted, *(each.caption for each in readable)])
    likeness = functional.cosine_similarity(states[1:], states[:1]).tolist()
    order = sorted(range(len(readable)), key=lambda at: (-likeness[at], readable[at].file.name))
    seen = [fingerprint(photo) for photo in photos]
    taken: list[int] = []
    for at in order:
        looks = readable[at].fingerprint
        if len(taken) < count and all((looks ^ other).bit_count() > NEAR_BITS for other in seen):
            taken.append(at)
            seen.append(looks)
    if not taken:
        raise InputInvalid("The folder of captioned pictures has none that could be a prior image here.")
    near = sum(likeness[at] >= NEAR for at in taken)
    if near < count:
        run.note(
            "prior_far",
            f"Of {count} prior images wanted, the folder has {near} with a caption near the class prompt; "
            f"{len(taken) - near} farther ones were taken as well.",
        )
    kept = cache_dir / library_key(model)
    latents = []
    for done, at in enumerate(taken, start=1):
        latents.append(_encoded(model, readable[at].file, kept))
        run.step("prior", done, len(taken))
    return PriorImages(torch.stack(latents).to(model.device), tuple(readable[at].caption for at in taken))


@torch.no_grad()
def text_ends(model: DiffusionModel, texts: Sequence[str]) -> Tensor:
    """[len(texts), d] fp32: the text state at the end of each text. Raises `PromptTooLong`, `InputInvalid`."""
    ids = torch.tensor([model.token_ids(text, {}) for text in texts])
    parts = [model.encode_prompts(part, None).pooled.float() for part in torch.split(ids, TEXTS_AT_ONCE)]
    return torch.cat(parts)


def fingerprint(photo: Path) -> int:
    """Difference hash: whether each of 8 x 8 cells is brighter than its right neighbour, as uploads have it."""
    with Image.open(photo) as opened:
        cells = opened.convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = bits << 1 | (cells[row * 9 + column] > cells[row * 9 + column + 1])
    return bits


def library_key(model: DiffusionModel) -> str:
    """Directory name: sha256 over all that the latents of one picture depend on beside it, 32 hexadecimal digits."""
    recipe = {
        "library": 1,
        "base": model.description.hash,
        "dtype": str(model.dtype),
        "size": model.description.resolution,
        "seed": SEED,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]


def _readable(model: DiffusionModel, caption: str) -> bool:
    try:
        model.token_ids(caption, {})
    except (PromptTooLong, InputInvalid):
        return False
    return True


def _encoded(model: DiffusionModel, file: Path, kept: Path) -> Tensor:
    """Latents [C, h, w] fp32 on the CPU of the centre square: a seeded draw from the posterior, kept in ``kept``."""
    path = kept / f"{file.stem}.safetensors"
    latents = read_latents(path, model)
    if latents is None:
        size = model.description.resolution
        view = render(open_square(file, size), Draw(size, 0, 0, "", mirrored=False), size, model.cell)
        dice = rng(SEED, f"library/{file.stem}", 0)
        latents = model.encode_images(view.pixels[None], dice)[0].float().cpu()
        kept.mkdir(parents=True, exist_ok=True)
        write_latents(path, latents, file.stem)
    return latents
