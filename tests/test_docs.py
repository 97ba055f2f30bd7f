"""Documentation that a test can hold: what exists is described, what is described exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.methods import CARDS
from backend.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/methods.md", "docs/operations.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_page_lead_somewhere(page: str) -> None:
    source = ROOT / page
    targets = re.findall(r"\]\(([^)#]+)\)", source.read_text())
    missing = [t for t in targets if "://" not in t and not (source.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_explained(name: str) -> None:
    assert f"MOONGATE_{name.upper()}" in (ROOT / "docs/operations.md").read_text()


@pytest.mark.parametrize("name", sorted(CARDS))
def test_every_method_has_its_section_and_its_source(name: str) -> None:
    text = (ROOT / "docs/methods.md").read_text()
    section = re.search(rf"^## [^\n]*`{re.escape(name)}`.*?(?=^## |\Z)", text, re.M | re.S)
    assert section, f"docs/methods.md has no section for {name}"
    arxiv = re.search(r"arXiv (\d{4}\.\d{5})", CARDS[name].source)
    assert arxiv
    assert arxiv[1] in section[0]
    for field in CARDS[name].params_type.model_fields:
        assert f"`{field}`" in section[0], f"{field} is not explained"


@pytest.mark.parametrize("name", sorted(CARDS))
def test_presets_for_stable_diffusion_stand_in_their_table(name: str) -> None:
    text = (ROOT / "docs/methods.md").read_text()
    for preset, values in CARDS[name].presets["stable-diffusion"].items():
        told = [
            f"`{key}` {value:g}" if isinstance(value, float) else f"`{key}` {value}"
            for key, value in values.items()
        ]
        row = f"| {CARDS[name].title} | {preset.capitalize()} | {', '.join(told) or 'the defaults'} |"
        assert row in text.splitlines()


@pytest.mark.parametrize("name", sorted(MERGE_CARDS))
def test_every_merge_has_its_section_and_its_source(name: str) -> None:
    text = (ROOT / "docs/methods.md").read_text()
    section = re.search(rf"^### [^\n]*`{re.escape(name)}`.*?(?=^###? |\Z)", text, re.M | re.S)
    assert section, f"docs/methods.md has no section for {name}"
    arxiv = re.search(r"arXiv (\d{4}\.\d{5})", MERGE_CARDS[name].source)
    assert arxiv
    assert arxiv[1] in section[0]
    for field in MERGE_CARDS[name].params_type.model_fields:
        assert f"`{field}`" in section[0], f"{field} is not explained"


def test_every_make_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    declared = re.search(r"\.PHONY: (.*)", makefile)
    assert declared
    for target in declared[1].split():
        assert re.search(rf"^{target}:.*## \w", makefile, re.M), target


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs/decisions").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


def public_definitions() -> list[tuple[str, ast.AST]]:
    found: list[tuple[str, ast.AST]] = []
    for folder in ("backend", "frontend", "worker"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            if path.name != "__init__.py" or tree.body:
                found.append((str(path.relative_to(ROOT)), tree))
            found += [
                (f"{path.relative_to(ROOT)}:{node.name}", node)
                for node in tree.body
                if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))
                and not node.name.startswith("_")
            ]
    return found


def test_modules_and_science_have_docstrings() -> None:
    """Every module; and in ``worker/ml`` every public class and function."""
    without = [
        name
        for name, node in public_definitions()
        if (isinstance(node, ast.Module) or name.startswith("worker/ml/"))
        and isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))
        and not ast.get_docstring(node)
    ]
    assert without == []
