"""Singular value decompositions ``W = U diag(sigma) V^T`` of a base model's weights: made once for a base, then kept.

The decomposition of a matrix [o, i], or of a convolution's [o, i kh kw], is computed on the CPU in double precision
and kept in single precision, so that every device and every precision of the model shifts along the same vectors
(methods.md 9, traps ii and vi). It is defined up to signs, which cancel in ``U V^T``.

On the disk: a directory for each base, named by its hash, with a file for each weight. A file appears by a rename, so
several processes may fill the same directory. A file is believed only if it says what it should and gives ``W x``
for a random x; anything else is made again. The whole takes at most ``MOST_BYTES``: the bases that were used longest
ago go first, and what then still finds no room is not kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.streams import rng

MOST_BYTES = 16 << 30
"""Room for the decompositions of three bases of the size of SD 1.5."""
STALE_S = 3600.0
"""A staged file this old belongs to a process that was killed."""
TOLERANCE = 1e-4
"""Of the probe, relative to ``W x``. Single precision is a thousand times better, a damaged factor much worse."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """``left`` [o, k], ``values`` [k] descending, ``right`` [k, i kh kw]; k the smaller side; fp32."""

    left: Tensor
    values: Tensor
    right: Tensor


def decomposed(weight: Tensor) -> Spectrum:
    """Of a linear or convolution weight, on the CPU."""
    matrix = weight.detach().to("cpu", torch.float64).flatten(1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return Spectrum(*(each.float().contiguous() for each in (left, values, right)))


class Spectra:
    """The decompositions of one base model. ``most_bytes`` of the whole directory, all bases together."""

    def __init__(self, model: DiffusionModel, most_bytes: int = MOST_BYTES) -> None:
        self._root = model.cache_dir / "spectra" if model.cache_dir else None
        self._base = model.description.hash
        self._most_bytes = most_bytes

    def of(self, weights: Mapping[str, Tensor], run: Run | None = None) -> dict[str, Spectrum]:
        """Of each weight by its name, on its device. ``run.step("spectra", ...)`` for each; raises what it raises."""
        found: dict[str, Spectrum] = {}
        for name, weight in weights.items():
            spectrum = self._read(name, weight)
            if spectrum is None:
                spectrum = decomposed(weight)
                self._keep(name, spectrum)
            found[name] = Spectrum(*(each.to(weight.device) for each in vars(spectrum).values()))
            if run is not None:
                run.step("spectra", len(found), len(weights))
        return found

    def _path(self, name: str) -> Path | None:
        if self._root is None:
            return None
        base = hashlib.sha256(self._base.encode()).hexdigest()[:32]
        return self._root / base / f"{name}.safetensors"

    def _read(self, name: str, weight: Tensor) -> Spectrum | None:
        """What is kept, or None where it is missing or not what it should be."""
        path = self._path(name)
        if path is None:
            return None
        try:
            held = safetensors.torch.load(
                path.read_bytes()
            )  # by hand: a file that goes meanwhile is an OSError
            os.utime(path.parent)
            spectrum = Spectrum(held["left"], held["values"], held["right"])
        except (OSError, KeyError, ValueError, safetensors.SafetensorError):
            return None
        return spectrum if fits(spectrum, weight) else None

    def _keep(self, name: str, spectrum: Spectrum) -> None:
        """Atomic: readers see the whole file or none. Without room, or on a full disk, nothing is kept."""
        path = self._path(name)
        if path is None:
            return
        content = safetensors.torch.save(dict(vars(spectrum)))
        staged = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._room(path, len(content)):
                return
            descriptor, staged = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(staged).rename(path)
        except (
            OSError
        ):  # the disk is full, or another process has just removed the directory: it costs time only
            if staged is not None:
                Path(staged).unlink(missing_ok=True)

    def _room(self, path: Path, size_bytes: int) -> bool:
        """Whether ``size_bytes`` more may be kept, after older bases have gone."""
        own, root = path.parent, path.parent.parent
        for staged in root.glob("*/*.tmp"):
            if changed_at(staged) < time.time() - STALE_S:
                staged.unlink(missing_ok=True)
        sizes = {folder: bytes_in(folder) for folder in root.iterdir() if folder.is_dir()}
        others = sorted(sizes.keys() - {own}, key=changed_at)
        while sum(sizes.values()) + size_bytes > self._most_bytes and others:
            oldest = others.pop(0)
            shutil.rmtree(oldest, ignore_errors=True)
            del sizes[oldest]
        return sum(sizes.values()) + size_bytes <= self._most_bytes


def fits(spectrum: Spectrum, weight: Tensor) -> bool:
    """Whether ``U (sigma (V^T x))`` is ``W x``: made of this very weight and undamaged, as far as one x can tell."""
    matrix = weight.detach().to("cpu", torch.float32).flatten(1)
    k = min(matrix.shape)
    shapes = [tuple(each.shape) for each in vars(spectrum).values()]
    if shapes != [(len(matrix), k), (k,), (k, matrix.shape[1])]:
        return False
    probe = torch.randn(matrix.shape[1], generator=rng(0, "spectra/probe", 0))
    true = matrix @ probe
    rebuilt = spectrum.left @ (spectrum.values * (spectrum.right @ probe))
    return bool((rebuilt - true).norm() <= TOLERANCE * true.norm())


def bytes_in(folder: Path) -> int:
    """Of the files of a directory; those that vanish meanwhile count as 0."""
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def changed_at(path: Path) -> float:
    """Modification time in seconds of the epoch, which every use of a directory sets; 0 where it has gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
