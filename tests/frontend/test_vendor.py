"""The browser files that were copied are the ones the manifest names, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from frontend.vendor import AXE_TARGET, HERE, ICONS, TARGET, digest

MANIFEST = json.loads((TARGET / "manifest.json").read_text())


@pytest.mark.parametrize("row", MANIFEST, ids=lambda row: Path(row["file"]).name)
def test_each_copy_has_the_hash_of_the_manifest(row: dict[str, str]) -> None:
    assert digest(HERE.parent / row["file"]) == row["sha256"]


def test_the_manifest_names_every_copy() -> None:
    present = {path for folder in (TARGET, AXE_TARGET) for path in folder.iterdir()}
    assert {HERE.parent / row["file"] for row in MANIFEST} == present - {TARGET / "manifest.json"}


def test_versions_are_those_that_are_pinned() -> None:
    pinned = json.loads((HERE / "package.json").read_text())
    wanted = pinned["dependencies"] | pinned["devDependencies"]
    assert {row["name"]: row["version"] for row in MANIFEST} == wanted


def test_licences_are_permissive_where_they_ship() -> None:
    shipped = {row["licence"] for row in MANIFEST if "static" in row["file"]}
    assert shipped <= {"MIT", "BSD-0-Clause", "0BSD", "ISC", "OFL-1.1"}


def test_every_icon_of_a_template_is_in_the_sprite() -> None:
    templates = "".join(path.read_text() for path in (HERE / "templates").glob("*.html"))
    used = set(re.findall(r'icon\("([a-z0-9-]+)"\)', templates))
    assert used <= set(ICONS)
    sprite = (TARGET / "icons.svg").read_text()
    assert set(re.findall(r'<symbol id="([^"]+)"', sprite)) == set(ICONS)


def test_no_style_or_script_leaves_the_house() -> None:
    own = [
        *(HERE / "static").glob("*.css"),
        *(HERE / "static").rglob("elements/*.js"),
        HERE / "static" / "theme.js",
    ]
    for path in own:
        assert not re.search(r"https?://", path.read_text()), path
