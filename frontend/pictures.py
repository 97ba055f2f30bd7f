"""How large a picture is shown: small ones at most four times their size, smoothly scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backend.schemas.images import Image

LARGEST_SCALE = 4
ROW_HEIGHT_PX = 256
"""Height of a row of the justified grid before it is made to fit."""
STAGE_PX = 1024
"""Longer side in the lightbox that a picture of ordinary size may reach."""


def shown(image: Image) -> tuple[int, int]:
    """Width and height in a grid."""
    return size_in_grid(image.width, image.height)


def size_in_grid(width: int, height: int) -> tuple[int, int]:
    scale = min(LARGEST_SCALE, ROW_HEIGHT_PX / height)
    return round(width * scale), round(height * scale)


def enlarged(image: Image) -> tuple[int, int]:
    """Width and height in the lightbox."""
    longer = max(image.width, image.height)
    scale = min(LARGEST_SCALE, max(1.0, STAGE_PX / longer))
    return round(image.width * scale), round(image.height * scale)


def source(image: Image) -> str:
    """The file for a grid: pictures that are small anyway as they are, so that scaling has all there is."""
    return image.url if max(image.width, image.height) <= 512 else image.thumbnail_url


FILTERS: dict[str, Callable[..., Any]] = {"shown": shown, "enlarged": enlarged, "source": source}
