"""Photos of a designer whose drawings no training has seen: OpenMoji, for benchmarks only.

``python -m benchmarks.openmoji --icons <the folder with node_modules/@iconify-json/openmoji>`` writes the folder
``benchmarks/photos``: individuals whose classes have a sample subject already, so that two of one class can meet in a
picture. They look and are listed like the sample photos (`worker.ml.toyworld.photos`); they are committed, so that no
benchmark needs the icons. Needs the extra ``base-model``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from worker.ml.toyworld.photos import PhotoSet, write_photos
from worker.ml.toyworld.scenes import SpriteBank
from worker.ml.toyworld.sprites import SpriteKey, load_sprites

DESIGNER = "openmoji"
PHOTOS = Path(__file__).parent / "photos"
INDIVIDUALS = {"pepper": "dog", "ginger": "cat", "copper": "teapot", "scout": "backpack"}


def photo_sets() -> list[PhotoSet]:
    return [PhotoSet(slug, slug.title(), SpriteKey(noun, DESIGNER)) for slug, noun in INDIVIDUALS.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--icons", type=Path, required=True)
    given = parser.parse_args()
    nouns = tuple(INDIVIDUALS.values())
    with tempfile.TemporaryDirectory() as folder:
        sprites = load_sprites(given.icons, Path(folder) / "sprites.npz", nouns, (DESIGNER,))
    write_photos(SpriteBank(sprites), PHOTOS, photo_sets())


if __name__ == "__main__":
    main()
