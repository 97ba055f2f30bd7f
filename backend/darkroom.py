"""The disposable process that decodes uploaded pictures: ``python -m backend.darkroom``, fed by ``uploads.Darkroom``.

One JSON object a line over stdin and stdout. It has no network use, no database and no credentials; memory, file
size and the CPU time of each picture are limited by the kernel, so that a hostile file costs at most this process.
It leaves when nothing came for a minute.

Pictures are stored as JPEG, quality 95 without chroma subsampling: a lossless copy of a 12 megapixel photo is ten
times as large, and the difference (about one grey level) lies far below what the autoencoder of a base model keeps.
"""

from __future__ import annotations

import errno
import io
import json
import select
import sys
import warnings
from typing import Any

from PIL import Image, ImageCms, ImageFilter, ImageOps, ImageStat

from backend.confined import allow_cpu, confine
from backend.framing import cut_edges

FORMATS = ("JPEG", "PNG", "WEBP")
IDLE_S = 60.0
CPU_S = 10
THUMBNAIL_PX = 512
MAX_ASPECT = 6.0
BLURRED_BELOW = 20.0
"""Variance of the Laplacian in the sharpest of 4 x 4 tiles of the grey picture at 512 pixels. Sharp photos have
hundreds; a sharp subject before a smooth background has one sharp tile, and that is enough."""
DARK_BELOW = 35.0
SMALL_BELOW_PX = 384

TURNS = {
    90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}
"""Clockwise degrees; Pillow counts the other way."""

_SRGB = ImageCms.createProfile("sRGB")
_HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftypavif")


_UNREADABLE = {
    "code": "unreadable-image",
    "detail": "This picture cannot be read. Save it again as JPEG.",
}
_FULL = {"code": "storage-full", "detail": "The disk is full. Free some space; nothing was stored."}


class Refused(Exception):
    """``code`` and a sentence; the status is the parent's to choose."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


def develop(
    *,
    source: str,
    picture: str,
    thumbnail: str,
    min_side_px: int,
    max_pixels: int,
    rotate: int = 0,
    crop: tuple[float, float, float, float] | None = None,
) -> dict[str, Any]:
    """Read ``source``, write an upright sRGB JPEG and a WebP thumbnail without any metadata.

    ``rotate`` is 0, 90, 180 or 270 degrees clockwise from upright; ``crop`` is x, y, width and height in shares of the
    turned picture. Raises Refused. Returns width, height, fingerprint (64-bit difference hash, hexadecimal), warnings.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        opened = Image.open(source, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large(max_pixels) from None
    except Exception:
        raise _unknown(source) from None
    with opened:
        _check_header(opened, min_side_px, max_pixels)
        try:
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            rgb = _cropped(_turned(to_srgb(upright), rotate), crop)
        except MemoryError:
            raise _too_large(max_pixels) from None
        except Exception:
            raise Refused(
                "unreadable-image", "This picture is damaged. Export it again as JPEG, PNG or WebP."
            ) from None
    if crop is not None:
        _check_shape(rgb.size, min_side_px)
    clean = Image.new("RGB", rgb.size)
    clean.paste(rgb)
    clean.save(picture, "JPEG", quality=95, subsampling=0, optimize=False)
    small = clean.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
    small.save(thumbnail, "WEBP", quality=80)
    grey = small.convert("L")
    return {
        "width": clean.width,
        "height": clean.height,
        "fingerprint": fingerprint(grey),
        "warnings": findings(grey, min(clean.size)) + framing(small),
    }


def _turned(picture: Image.Image, degrees: int) -> Image.Image:
    return picture.transpose(TURNS[degrees]) if degrees else picture


def _cropped(picture: Image.Image, box: tuple[float, float, float, float] | None) -> Image.Image:
    if box is None:
        return picture
    x, y, width, height = box
    left, top = round(x * picture.width), round(y * picture.height)
    right, bottom = round((x + width) * picture.width), round((y + height) * picture.height)
    return picture.crop((left, top, min(right, picture.width), min(bottom, picture.height)))


def _check_header(opened: Image.Image, min_side_px: int, max_pixels: int) -> None:
    """Everything the header says, before a pixel is decoded."""
    width, height = opened.size
    if width * height > max_pixels:
        raise _too_large(max_pixels)
    _check_shape(opened.size, min_side_px)
    if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:  # phones hide depth maps behind MPO
        raise Refused("multi-frame", "This is an animation. Save one frame of it as a picture.")


def _check_shape(size: tuple[int, int], min_side_px: int) -> None:
    width, height = size
    if min(width, height) < min_side_px:
        raise Refused("image-too-small", f"The shorter side must have at least {min_side_px} pixels.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Refused("bad-aspect", "This picture is too long and narrow. Cut it closer to a square.")


def _too_large(max_pixels: int) -> Refused:
    return Refused(
        "image-too-large", f"Pictures may have at most {max_pixels // 1_000_000} megapixels. Scale it down."
    )


def _unknown(source: str) -> Refused:
    with open(source, "rb") as file:  # noqa: PTH123 - the path is ours, and this process avoids further imports
        head = file.read(32)
    if head[4:12] in _HEIF_BRANDS:
        return Refused("unsupported-image", "HEIC and AVIF are not read yet. Save it as JPEG, PNG or WebP.")
    return Refused("unsupported-image", "Only JPEG, PNG and WebP pictures are accepted.")


def to_srgb(picture: Image.Image) -> Image.Image:
    """Eight-bit sRGB through the embedded profile; transparency is laid on white, sixteen bits are halved."""
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I") or picture.mode == "F":
        return picture.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if picture.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    if profile and picture.mode in ("RGB", "CMYK", "L"):
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, embedded, _SRGB, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile says nothing about the colours: read them as sRGB
    return picture.convert("RGB")


def fingerprint(grey: Image.Image) -> str:
    """Difference hash: whether each of 8 x 8 cells is brighter than its right neighbour."""
    cells = grey.resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = bits << 1 | (cells[row * 9 + column] > cells[row * 9 + column + 1])
    return f"{bits:016x}"


def findings(grey: Image.Image, shorter_px: int) -> list[str]:
    """Sentences about a picture that can be used but may teach badly."""
    kernel = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128)
    edges = grey.filter(kernel).crop(
        (1, 1, grey.width - 1, grey.height - 1)
    )  # the filter leaves the rim alone
    found = []
    if shorter_px < SMALL_BELOW_PX:
        found.append(f"Small: {shorter_px} pixels on the shorter side, so fine details are missing.")
    if max(ImageStat.Stat(tile).var[0] for tile in _tiles(edges)) < BLURRED_BELOW:
        found.append("Blurred: a sharper photo teaches more.")
    if ImageStat.Stat(grey).mean[0] < DARK_BELOW:
        found.append("Very dark: a brighter photo teaches more.")
    return found


def framing(small: Image.Image) -> list[str]:
    """A sentence where the subject seems to leave the picture."""
    edges = cut_edges(small)
    return [f"Cut off at the {' and the '.join(edges)}: show the whole of it if you can."] if edges else []


def _tiles(picture: Image.Image) -> list[Image.Image]:
    width, height = picture.width // 4, picture.height // 4
    corners = [(column * width, row * height) for row in range(4) for column in range(4)]
    return [picture.crop((left, top, left + width, top + height)) for left, top in corners]


def main() -> None:
    """Answer requests until stdin closes or nothing comes for a minute."""
    confine()
    while select.select([sys.stdin.buffer], [], [], IDLE_S)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        allow_cpu(CPU_S)
        try:
            answer: dict[str, Any] = {"done": develop(**json.loads(line))}
        except Refused as refused:
            answer = {"code": refused.code, "detail": refused.detail}
        except OSError as error:
            answer = _FULL if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else _UNREADABLE
        except Exception:
            answer = _UNREADABLE
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
