"""The "photos" that ship: ten scenes of each held-out subject and of the moongate, 512 px, WebP.

A subject's photos 00-04 are what somebody would upload; 05-09 are other true photos of it, the upper anchor
of subject similarity (`worker.ml.evaluation.protocol`). Place, size, position, turn, light and mirror differ
from photo to photo; colour does not.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from worker.ml.toyworld.moongate import MOONGATE, draw_moongate
from worker.ml.toyworld.places import Array, Rng
from worker.ml.toyworld.scenes import Placed, Scene, SpriteBank, draw
from worker.ml.toyworld.sprites import SpriteKey
from worker.ml.toyworld.world import FEATURED, HELD_OUT, PLACES

PHOTO_PX = 512
TRAINING_PHOTOS = 5
REFERENCE_PHOTOS = 5
QUALITY = 80
GROUNDS = (*PLACES, "yellow", "green", "white", "pink")
"""Where photos are taken: every place, and a few plain walls."""

APACHE, MIT, CC_BY, CC_BY_SA, ISC = "Apache-2.0", "MIT", "CC BY 4.0", "CC BY-SA 4.0", "ISC"
LICENCES: dict[str, tuple[str, str]] = {
    "noto": (APACHE, "Noto Emoji, Google"),
    "noto-v1": (APACHE, "Noto Emoji (version 1), Google"),
    "fluent-emoji": (MIT, "Fluent Emoji, Microsoft"),
    "fluent-emoji-flat": (MIT, "Fluent Emoji, Microsoft"),
    "twemoji": (CC_BY, "Twitter Emoji (Twemoji), Twitter, Inc. and other contributors"),
    "emojione": (CC_BY, "EmojiOne 2, EmojiOne"),
    "fxemoji": (APACHE, "Firefox OS Emoji, Mozilla"),
    "streamline-emojis": (CC_BY, "Streamline Emojis, Streamline"),
    "icon-park": (APACHE, "IconPark, ByteDance"),
    "fluent-emoji-high-contrast": (MIT, "Fluent Emoji, Microsoft"),
    "mdi": (APACHE, "Material Design Icons, Pictogrammers"),
    "ph": (MIT, "Phosphor, Phosphor Icons"),
    "tabler": (MIT, "Tabler Icons, Pawel Kuna"),
    "fa6-solid": (CC_BY, "Font Awesome Free, Fonticons, Inc."),
    "game-icons": ("CC BY 3.0", "Game Icons, Lorc, Delapouite and contributors"),
    "lucide": (ISC, "Lucide, Lucide Contributors"),
    "openmoji": (CC_BY_SA, "OpenMoji, HfG Schwäbisch Gmünd and contributors"),
    "moongate": (APACHE, "drawn by this project's own code"),
}
"""Designer -> licence of its drawings, and whom to name."""


CHANGED = "attribution as in the table; changed as\n  described above"
TERMS: dict[str, str] = {
    APACHE: "- Apache-2.0: <https://www.apache.org/licenses/LICENSE-2.0>",
    CC_BY: f"- CC BY 4.0: <https://creativecommons.org/licenses/by/4.0/> ({CHANGED})",
    CC_BY_SA: f"- CC BY-SA 4.0: <https://creativecommons.org/licenses/by-sa/4.0/> ({CHANGED}; the pictures\n"
    "  are under the same licence)",
}
"""What a licence says, for the licences that photos may have."""


@dataclass(frozen=True)
class PhotoSet:
    """One subject's photos as `samples.json` lists them."""

    slug: str
    name: str
    key: SpriteKey

    @property
    def featured(self) -> bool:
        return self.slug in FEATURED

    def entry(self) -> dict[str, object]:
        licence, source = LICENCES[self.key.designer]
        names = [f"{number:02d}.webp" for number in range(TRAINING_PHOTOS + REFERENCE_PHOTOS)]
        return {
            "slug": self.slug,
            "name": self.name,
            "kind": "subject",
            "class_noun": self.key.noun,
            "licence": licence,
            "source": source,
            "featured": self.featured,
            "train": names[:TRAINING_PHOTOS],
            "reference": names[TRAINING_PHOTOS:],
        }


def photo_sets() -> list[PhotoSet]:
    """The ten held-out subjects, then the moongate."""
    return [*(PhotoSet(s.slug, s.name, s.key) for s in HELD_OUT), PhotoSet("moongate", "Moongate", MOONGATE)]


def photo_rng(slug: str) -> Rng:
    """The generator of one subject's photos."""
    return np.random.default_rng([7, zlib.crc32(slug.encode())])


def photo_scenes(key: SpriteKey, rng: Rng) -> Iterator[Scene]:
    """Ten scenes of one individual, each at another place."""
    grounds = rng.permutation(len(GROUNDS))[: TRAINING_PHOTOS + REFERENCE_PHOTOS]
    mirrors = rng.permutation([True, False] * ((TRAINING_PHOTOS + REFERENCE_PHOTOS) // 2))
    for ground, mirror in zip(grounds, mirrors, strict=True):
        side = float(rng.uniform(0.46, 0.78))
        reach = max(0.03, 0.40 - side / 2)
        x, y = 0.5 + rng.uniform(-reach, reach), 0.54 + rng.uniform(-reach, reach) * 0.7
        placed = Placed(key, None, side, float(x), float(y), bool(mirror), float(rng.uniform(-9, 9)))
        yield Scene(
            (placed,),
            GROUNDS[ground],
            "photo",
            "normal",
            int(rng.integers(2**31)),
            float(rng.uniform(0.84, 1.10)),
        )


def photo(scene: Scene, bank: SpriteBank, side: int = PHOTO_PX) -> Image.Image:
    """``scene`` at ``side`` pixels, drawn twice as large first so that edges are smooth."""
    large: Array = draw(scene, bank, 2 * side)
    return Image.fromarray(np.round(large * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BOX)


def write_photos(bank: SpriteBank, folder: Path, sets: list[PhotoSet]) -> None:
    """Write every set, `samples.json` and `LICENSES.md` to ``folder``."""
    whole = SpriteBank({**bank.sprites, MOONGATE: draw_moongate()})
    for each in sets:
        (folder / each.slug).mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(photo_scenes(each.key, photo_rng(each.slug))):
            photo(scene, whole).save(folder / each.slug / f"{number:02d}.webp", quality=QUALITY, method=6)
    listed = {"subjects": [each.entry() for each in sets]}
    (folder / "samples.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
    (folder / "LICENSES.md").write_text(licences_text(sets))


def licences_text(sets: list[PhotoSet]) -> str:
    """Who drew what, under which licence."""
    rows = []
    for each in sets:
        licence, source = LICENCES[each.key.designer]
        rows.append(f"| `{each.slug}/` | {each.key.noun} | {source} | {licence} |")
    return "\n".join(
        [
            "# Licences of these photos",
            "",
            "Every picture is a scene composed by `worker/ml/toyworld/photos.py`: a drawing by the designers",
            "named below, resized, turned, mirrored and lit, on a background drawn by this project's code.",
            "The drawings come from Iconify's packages of these sets. The backgrounds and the composition are",
            "Apache-2.0 like the rest of the project.",
            "",
            "| folder | what | drawn by | licence of the drawing |",
            "|---|---|---|---|",
            *rows,
            "",
            *sorted({TERMS[LICENCES[each.key.designer][0]] for each in sets}),
            "",
        ]
    )
