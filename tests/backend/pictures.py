"""Pictures for tests: sharp, distinct and small, in the formats and with the baggage that people upload."""

from __future__ import annotations

import io
import random
from typing import Any

from PIL import ExifTags, Image, ImageDraw


def scene(seed: int = 0, size: tuple[int, int] = (400, 300), mode: str = "RGB") -> Image.Image:
    """Coloured rectangles; another seed is another picture."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randrange(100, 256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        colour = tuple(rng.randrange(256) for _ in range(3))
        draw.rectangle((x, y, x + rng.randrange(10, 90), y + rng.randrange(10, 90)), fill=colour)
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of a picture."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(seed: int = 0, size: tuple[int, int] = (400, 300)) -> bytes:
    """A JPEG."""
    return encoded(scene(seed, size), quality=90)


def revealing() -> bytes:
    """A JPEG with a place, a camera, a thumbnail's worth of secrets and a text in XMP."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "SECRETCAM"
    exif[ExifTags.Base.ImageDescription] = "SECRETHOME"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 30.0, 0.0)
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = b"SECRETNOTE"
    return encoded(scene(7), exif=exif, xmp=b"<x:xmpmeta>SECRETXMP</x:xmpmeta>", comment=b"SECRETCOMMENT")
