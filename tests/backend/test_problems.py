"""Problems: every code is documented, every finding of pydantic has a sentence of ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backend.api.problems import field_errors, sentence

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = [
    path
    for path in (ROOT / "backend").rglob("*.py")
    if path.parent.name in {"backend", "api", "services"} and path.name not in {"leases.py", "maintenance.py"}
]


def codes() -> set[str]:
    text = "\n".join(path.read_text() for path in SOURCES)
    return set(
        re.findall(r"(?:code(?:: str)? ?=|Refused\(|wrong\(.*,|\"code\":)\s*\"([a-z]+(?:-[a-z]+)*)\"", text)
    ) | {"files-refused"}


@pytest.mark.parametrize("code", sorted(codes()))
def test_every_code_is_documented(code: str) -> None:
    assert f"`{code}`" in (ROOT / "docs/api.md").read_text()


def test_no_code_is_documented_that_does_not_exist() -> None:
    table = (ROOT / "docs/api.md").read_text().partition("## Problems")[2]
    rows = [line.split("|")[2] for line in table.splitlines() if re.match(r"\| \d{3}", line)]
    documented = {code for row in rows for code in re.findall(r"`([a-z-]+)`", row)}
    assert documented - codes() == {"image-too-large"} - codes()


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"type": "missing"}, "This field is required."),
        ({"type": "less_than_equal", "ctx": {"le": 200}}, "Must be at most 200."),
        ({"type": "literal_error", "ctx": {"expected": "'a' or 'b'"}}, "Must be 'a' or 'b'."),
        ({"type": "never heard of"}, "This value is not right; see the API description."),
        ({"type": "less_than_equal", "ctx": {}}, "This value is not right; see the API description."),
    ],
)
def test_sentences(item: dict[str, object], expected: str) -> None:
    assert sentence(item) == expected


def test_pointers_are_json_pointers_into_the_body() -> None:
    found = field_errors(
        [
            {"type": "missing", "loc": ("body", "weights", 0, "a/b~c")},
            {"type": "missing", "loc": ("query", "limit")},
        ]
    )
    assert [error.pointer for error in found] == ["/weights/0/a~1b~0c", "/limit"]
