"""Checkpoints: a directory per step that either verifies or does not exist (reliability 2.5).

``ckpt-<step>/`` holds ``tensors.safetensors`` (what is learned), ``optimiser.safetensors``, ``scalars.json``
and, written last, ``manifest.json`` with the size and sha256 of each. It is written as ``ckpt-<step>.tmp``,
every file and the directory flushed to the disk, then renamed, then the parent is flushed. Two valid ones are
kept; older ones go only after the new one verifies. Nothing is pickled, and no generator state is stored:
draws are functions of (seed, stream, step).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

FORMAT = 1
KEPT = 2
FILES = ("tensors.safetensors", "optimiser.safetensors", "scalars.json")
NAME = re.compile(r"^ckpt-(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on: ``step`` steps are made. ``scalars`` is JSON."""

    step: int
    tensors: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    scalars: Mapping[str, Any]


class CheckpointInvalid(Exception):
    """A directory that does not verify."""


def save_checkpoint(
    directory: Path, state: Checkpoint, writing: Callable[[str], None] = lambda file: None
) -> Path:
    """Writes ``state`` durably and prunes. A valid checkpoint of the same step is left as it is.

    ``writing`` is called in the middle of each file. Raises OSError, as when the disk is full; then what was begun is
    removed and what was there stays.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"ckpt-{state.step}"
    if final.exists():
        if _verifies(final):
            return final
        shutil.rmtree(final)
    staged = directory / f"ckpt-{state.step}.tmp"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    contents = (
        safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}),
        safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in state.optimiser.items()}),
        json.dumps({"step": state.step, **state.scalars}, sort_keys=True).encode(),
    )
    try:
        files = {}
        for name, content in zip(FILES, contents, strict=True):
            _write_durably(staged / name, content, writing)
            files[name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {"format": FORMAT, "step": state.step, "files": files}
        _write_durably(staged / "manifest.json", json.dumps(manifest, sort_keys=True).encode(), writing)
        _flush_directory(staged)
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    staged.rename(final)
    _flush_directory(directory)
    _prune(directory, final)
    return final


def load_newest(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and the names of newer ones that did not."""
    discarded: list[str] = []
    for path in reversed(_by_step(directory)):
        try:
            return load_checkpoint(path), discarded
        except CheckpointInvalid:
            discarded.append(path.name)
    return None, discarded


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies one directory. Raises `CheckpointInvalid` for anything out of order."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        contents = {name: (path / name).read_bytes() for name in FILES}
        for name, content in contents.items():
            listed = manifest["files"][name]
            if listed != {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}:
                raise CheckpointInvalid(f"{name} differs from the manifest")
        scalars = json.loads(contents["scalars.json"])
        step = int(scalars.pop("step"))
        if manifest["format"] != FORMAT or manifest["step"] != step:
            raise CheckpointInvalid("manifest and scalars disagree")
        return Checkpoint(
            step=step,
            tensors=safetensors.torch.load(contents["tensors.safetensors"]),
            optimiser=safetensors.torch.load(contents["optimiser.safetensors"]),
            scalars=scalars,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise CheckpointInvalid(str(error)) from error


def _by_step(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def _verifies(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except CheckpointInvalid:
        return False
    return True


def _prune(directory: Path, newest: Path) -> None:
    """Keeps the ``KEPT`` newest that verify, removes the rest; only once ``newest`` verifies itself."""
    if not _verifies(newest):
        raise CheckpointInvalid(f"{newest.name} does not verify after it was written")
    kept = 0
    for path in reversed(_by_step(directory)):
        if kept < KEPT and _verifies(path):
            kept += 1
        else:
            shutil.rmtree(path, ignore_errors=True)
    for left in directory.glob("ckpt-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _write_durably(path: Path, content: bytes, writing: Callable[[str], None]) -> None:
    with path.open("wb") as file:
        file.write(content)
        writing(path.name)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
