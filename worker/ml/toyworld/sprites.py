"""Sprites: emoji drawings of everyday objects, one per (class, designer).

Sources are Iconify JSON icon sets from npm (``@iconify-json/<set>``), rendered by ``resvg_py``. A sprite is
float32 ``[S, S, 4]`` in [0, 1], straight (not premultiplied) alpha, cropped to its drawing and centred in a
square, so that two designers' dogs have the same extent. Rendered once at ``SPRITE_PX`` and cached as one file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]

SPRITE_PX = 256

DESIGNERS: tuple[str, ...] = (
    "noto",
    "noto-v1",
    "fluent-emoji",
    "fluent-emoji-flat",
    "twemoji",
    "emojione",
)
"""Sets whose drawings may be trained on and shipped. A seventh, openmoji, is a style that is never trained
on.
"""

ICON_NAMES: dict[str, tuple[str, ...]] = {
    "apple": ("red-apple", "apple"),
    "car": ("automobile",),
    "clock": ("alarm-clock",),
    "fox": ("fox", "fox-face"),
    "rabbit": ("rabbit-face",),
}
"""Words whose icon has another name; every other word is its own icon name."""


@dataclass(frozen=True)
class SpriteKey:
    """One individual: the drawing of ``noun`` by ``designer``."""

    noun: str
    designer: str


def icon_names(noun: str) -> tuple[str, ...]:
    """Names under which a set may hold the drawing of ``noun``, in the order they are tried."""
    return ICON_NAMES.get(noun, (noun.replace(" ", "-"),))


def _resolve(data: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The icon entry behind ``name``, following Iconify aliases."""
    for _ in range(5):
        if name in data["icons"]:
            return dict(data["icons"][name])
        alias = data.get("aliases", {}).get(name)
        if alias is None:
            return None
        name = alias["parent"]
    return None


def svg_named(data: Mapping[str, Any], name: str) -> str | None:
    """SVG text of the icon ``name`` in an Iconify icon set, or None where the set has none of that name."""
    icon = _resolve(data, name)
    if icon is None:
        return None
    box = [icon.get(k, data.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
    view = " ".join(str(v) for v in box)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view}" width="{box[2]}" height="{box[3]}">{icon["body"]}</svg>'
    )


def icon_svg(data: Mapping[str, Any], noun: str) -> str | None:
    """SVG text of ``noun`` in an Iconify icon set, or None where the set does not draw it."""
    found = (svg_named(data, name) for name in icon_names(noun))
    return next((svg for svg in found if svg is not None), None)


def centred(rgba: Array, px: int = SPRITE_PX) -> Array:
    """Crop ``[H, W, 4]`` to what is opaque and fit it into a transparent square of side ``px``."""
    rows, cols = np.where(rgba[..., 3] > 0.03)
    if len(rows) == 0:
        raise ValueError("an empty drawing")
    cut = rgba[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    side = max(cut.shape[:2])
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return resized(square, px)


def resized(rgba: Array, px: int) -> Array:
    """Area-aware resize of straight-alpha ``[S, S, 4]`` to side ``px``; colour is weighted by alpha."""
    pre = rgba.copy()
    pre[..., :3] *= pre[..., 3:]
    planes = [
        Image.fromarray(pre[..., c]).resize(
            (px, px), Image.Resampling.BOX if px < rgba.shape[0] else Image.Resampling.BICUBIC
        )
        for c in range(4)
    ]
    out = np.clip(np.stack([np.asarray(p, np.float32) for p in planes], -1), 0, 1)
    out[..., :3] = np.clip(out[..., :3] / np.maximum(out[..., 3:], 1e-4), 0, 1)
    return out


def render(svg: str) -> Array:
    """Rasterise one SVG to a centred sprite. Needs the extra ``base-model`` (``resvg_py``)."""
    import resvg_py  # only `make base-model` needs it

    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=320, height=320))
    with Image.open(io.BytesIO(data)) as image:
        return centred(np.asarray(image.convert("RGBA"), np.float32) / np.float32(255))


def load_sprites(
    icons: Path, cache: Path, nouns: tuple[str, ...], sets: tuple[str, ...]
) -> dict[SpriteKey, Array]:
    """Every drawing of ``nouns`` in ``sets``, from ``cache`` (one .npz) or rendered from ``icons``.

    ``icons`` is the folder that holds ``node_modules/@iconify-json/<set>/icons.json``.
    """
    sprites: dict[SpriteKey, Array] = {}
    known: set[str] = set()
    if cache.exists():
        with np.load(cache) as stored:
            known = {str(n) for n in stored["tried"]}
            for name in stored.files:
                if name != "tried":
                    noun, designer = name.split("|")
                    sprites[SpriteKey(noun, designer)] = stored[name].astype(np.float32) / 255
    wanted = {f"{n}|{s}" for n in nouns for s in sets}
    if not wanted <= known:
        for designer in sets:
            path = icons / "node_modules" / "@iconify-json" / designer / "icons.json"
            data = json.loads(path.read_text())
            for noun in nouns:
                if f"{noun}|{designer}" not in known and (svg := icon_svg(data, noun)) is not None:
                    sprites[SpriteKey(noun, designer)] = render(svg)
        known |= wanted
        blob: dict[str, Any] = {
            f"{k.noun}|{k.designer}": np.round(v * 255).astype(np.uint8) for k, v in sprites.items()
        }
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(cache, tried=np.array(sorted(known)), **blob)
    return {k: v for k, v in sprites.items() if k.noun in nouns and k.designer in sets}
