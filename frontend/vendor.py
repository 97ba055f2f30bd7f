"""Copies the pinned browser files into ``static/vendor`` with a manifest: name, version, licence, sha256.

Run after changing a version in ``package.json`` (the only moment that needs Node)::

    npm ci --prefix frontend --ignore-scripts && python -m frontend.vendor frontend/node_modules

The copies are committed and a test verifies their hashes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE / "static" / "vendor"
AXE_TARGET = HERE.parent / "tests" / "browser" / "vendor"

FILES: tuple[tuple[str, str, Path], ...] = (
    ("htmx.org", "dist/htmx.min.js", TARGET / "htmx.min.js"),
    ("@picocss/pico", "css/pico.min.css", TARGET / "pico.min.css"),
    ("uplot", "dist/uPlot.iife.min.js", TARGET / "uplot.min.js"),
    ("uplot", "dist/uPlot.min.css", TARGET / "uplot.min.css"),
    ("@fontsource-variable/inter", "files/inter-latin-wght-normal.woff2", TARGET / "inter.woff2"),
    ("axe-core", "axe.min.js", AXE_TARGET / "axe.min.js"),
)
"""npm package, file inside it, where the copy lives."""

ICONS: tuple[str, ...] = (
    "activity", "arrow-left", "arrow-right", "check", "chevron-down", "chevron-left", "chevron-right",
    "circle-alert", "circle-dashed", "clock", "cpu", "crop", "dice-5", "download", "graduation-cap", "hard-drive",
    "house", "image-plus", "images", "info", "layers", "list-ordered", "lock", "moon", "pen-line", "play",
    "plus", "refresh-cw", "repeat-2", "rotate-cw", "save", "search", "settings", "shuffle", "square", "star",
    "sun", "sun-moon", "trash-2", "triangle-alert", "upload", "wand-sparkles", "x",
)  # fmt: skip
"""Names of the lucide icons in the sprite."""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sprite(icons: Path) -> str:
    """One SVG with a ``<symbol>`` an icon; size and stroke come from the style sheet."""
    symbols = []
    for name in ICONS:
        drawing = re.search(r"<svg[^>]*>(.*)</svg>", (icons / f"{name}.svg").read_text(), re.DOTALL)
        if drawing is None:
            raise ValueError(f"{name}.svg is not an icon")
        inside = " ".join(drawing[1].split())
        symbols.append(f'<symbol id="{name}" viewBox="0 0 24 24">{inside}</symbol>')
    return '<svg xmlns="http://www.w3.org/2000/svg">\n' + "\n".join(symbols) + "\n</svg>\n"


def package(modules: Path, name: str) -> dict[str, str]:
    described = json.loads((modules / name / "package.json").read_text())
    return {"name": name, "version": described["version"], "licence": described["license"]}


def main(modules: Path) -> None:
    """Copy everything and write the manifest."""
    TARGET.mkdir(parents=True, exist_ok=True)
    AXE_TARGET.mkdir(parents=True, exist_ok=True)
    manifest = []
    for name, source, copy in FILES:
        copy.write_bytes((modules / name / source).read_bytes())
        row = {
            "file": copy.relative_to(HERE.parent).as_posix(),
            **package(modules, name),
            "sha256": digest(copy),
        }
        manifest.append(row)
    icons = TARGET / "icons.svg"
    icons.write_text(sprite(modules / "lucide-static" / "icons"))
    row = {"file": icons.relative_to(HERE.parent).as_posix(), **package(modules, "lucide-static")}
    manifest.append(row | {"sha256": digest(icons)})
    (TARGET / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    sys.stdout.write(f"{len(manifest)} files copied\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
