"""The walls of the house: sizes, names, and what the web process may import."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CEILING_LINES = 400
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}


def tracked() -> list[Path]:
    """Every file git tracks, or every file that would travel where there is no git (an unpacked archive)."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in listing.decode().split("\0") if name and (ROOT / name).is_file()]


FILES = tracked()
OWN_SOURCE = [
    path
    for path in FILES
    if path.suffix in {".py", ".js", ".css", ".html"}
    and "vendor" not in path.parts
    and ".min." not in path.name
]


def test_there_is_something_to_look_at() -> None:
    assert len(OWN_SOURCE) > 20


@pytest.mark.parametrize("path", OWN_SOURCE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_the_ceiling(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= CEILING_LINES


def test_no_junk_drawers() -> None:
    assert [
        path for path in FILES if path.stem in DRAWERS or DRAWERS & set(path.relative_to(ROOT).parts[:-1])
    ] == []


def test_the_tree_stays_small() -> None:
    sizes = {path.relative_to(ROOT): path.stat().st_size for path in FILES}
    assert {name: size for name, size in sizes.items() if size > 16_000_000} == {}
    weights = sum(size for name, size in sizes.items() if name.parts[:2] == ("worker", "base_models"))
    pictures = sum(size for name, size in sizes.items() if name.suffix in {".webp", ".png", ".jpg"})
    assert weights <= 28_000_000
    assert pictures <= 8_000_000
    assert sum(sizes.values()) <= 45_000_000


def test_no_machine_paths_or_unfinished_places() -> None:
    machine = re.compile(r"(^|[^A-Za-z.\w])/(work|farm|root|opt/wheels)/")
    unfinished = re.compile(r"\b(NotImplementedError|TODO|FIXME|XXX)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in FILES
        if path.suffix in {".py", ".js", ".css", ".html", ".md", ".toml", ".yml", ".txt", ".json"}
        and "vendor" not in path.parts
        and path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if machine.search(line) or (path.suffix in {".py", ".js", ".html"} and unfinished.search(line))
    ]
    assert found == []


def test_torch_is_the_exact_pin_and_torchvision_is_absent() -> None:
    assert version("torch").startswith("2.13.0")
    probe = "import importlib.util as u, sys; sys.exit(u.find_spec('torchvision') is not None)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_the_web_process_starts_with_tensors_blocked(tmp_path: Path) -> None:
    """Contract 2, from outside: the application is built and its schema rendered without torch."""
    program = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'transformers', 'worker'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from backend.main import create_app\n"
        "from backend.settings import Settings\n"
        f"app = create_app(Settings(data_dir=Path({str(tmp_path)!r})))\n"
        "assert len(app.openapi()['paths']) > 20\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
