"""Base model folders: which there are, and what is known of each without reading its weights again.

A description is kept under the listing of the folder and of the registered judges' (names, sizes, times of change), the
fields a description has and the names of the methods, so that hashing gigabytes happens once and a new method is found.
The supervisor reads what is kept; the executor, which can read a model folder, adds to it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from backend.schemas.bases import BaseDescription
from backend.schemas.methods import CARDS


def base_folders(shipped: Path, further: Sequence[Path]) -> list[Path]:
    """Folders with a ``model_index.json``: those below ``shipped``, then ``further``; resolved, each once."""
    below = sorted(shipped.iterdir()) if shipped.is_dir() else []
    found = [folder.resolve() for folder in [*below, *further] if (folder / "model_index.json").is_file()]
    return list(dict.fromkeys(found))


def kept_description(folder: Path, cache: Path, judges: Sequence[Path] = ()) -> BaseDescription | None:
    """The description of the folder as it is now, or None when it was never made. ``judges``: registered ones."""
    try:
        return BaseDescription.model_validate_json(_file(folder, cache, judges).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def keep_description(
    folder: Path, cache: Path, description: BaseDescription, judges: Sequence[Path] = ()
) -> None:
    """Remember it for the next start."""
    file = _file(folder, cache, judges)
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_suffix(f".{os.getpid()}.tmp")
    staged.write_text(description.model_dump_json())
    staged.replace(file)


def _file(folder: Path, cache: Path, judges: Sequence[Path]) -> Path:
    listings = [[str(each.resolve()), _listing(each)] for each in (folder, *judges)]
    key = hashlib.sha256(json.dumps([sorted(BaseDescription.model_fields), sorted(CARDS), listings]).encode())
    return cache / "bases" / f"{key.hexdigest()}.json"


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    )
