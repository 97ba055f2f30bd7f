"""Run: what a long computation tells its caller, and how the caller stops it.

The computation calls ``step`` at every step boundary (an optimiser step, a solver step, an encoded photo).
That is where a request takes effect, so every request is honoured within one step:

========  ====================  =============================================================================
request   ``step`` raises       who catches it
========  ====================  =============================================================================
cancel    `Cancelled`           nobody in here: nothing is kept
finish    `FinishRequested`     the training loop returns what is learned so far; anywhere else there is
nothing to
                                keep yet, and it *is* a `Cancelled`
release   `ReleaseRequested`    the training loop writes a checkpoint and raises `Released`; anywhere else
finished
                                pieces are already on disk, and it *is* a `Released`
========  ====================  =============================================================================

So a caller handles exactly two exceptions, `Cancelled` and `Released`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from worker.ml.training.checkpoint import Checkpoint, load_newest, save_checkpoint

Request = Literal["cancel", "finish", "release"]


class Cancelled(Exception):
    """Stop; nothing is kept."""


class FinishRequested(Cancelled):
    """Stop and keep what is learned so far, where something was learned."""


class Released(Exception):
    """Stopped with everything safe on disk: another attempt goes on from here."""


class ReleaseRequested(Released):
    """Stop after saving."""


REQUESTS: dict[Request, type[Exception]] = {
    "cancel": Cancelled,
    "finish": FinishRequested,
    "release": ReleaseRequested,
}


@dataclass(frozen=True)
class PreviewImage:
    """A picture of the concept as it stands; ``pixels`` is uint8 [H, W, 3]."""

    index: int
    prompt: str
    seed: int
    pixels: NDArray[np.uint8]


class Run(Protocol):
    """The caller's side. ``unit`` names what the message is about: "prior", "masks", "photos", "train", "preview",
    "images", "compress".
    """

    @property
    def checkpoint_s(self) -> float:
        """Wish for the time between two checkpoints, seconds."""

    def step(self, unit: str, done: int, total: int, **metrics: float) -> None:
        """``done`` of ``total`` steps are made. Raises what was requested, see the table above."""

    def preview(self, unit: str, step: int, images: Sequence[PreviewImage]) -> None:
        """Previews after ``step`` optimiser steps. May come again for the same step after a resume."""

    def checkpoint(self, unit: str, state: Checkpoint) -> None:
        """Makes ``state`` durable before it returns."""

    def resume(self, unit: str) -> Checkpoint | None:
        """The newest durable state of ``unit``, or None for a fresh start."""

    def note(self, code: str, message: str) -> None:
        """Something a person should know later: a recovery, a discarded checkpoint."""


@dataclass
class InProcessRun:
    """A Run within this process: for benchmarks and tests, and a model for the executor's.

    ``directory`` None: nothing is durable. ``on_step`` sees every step before a request takes effect, and may
    set ``request``.
    """

    directory: Path | None = None
    on_step: Callable[[str, int, int, dict[str, float]], None] | None = None
    checkpoint_s: float = 60.0
    request: Request | None = None
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    previews: dict[int, list[PreviewImage]] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def step(self, unit: str, done: int, total: int, **metrics: float) -> None:
        if metrics:
            self.history.setdefault(unit, []).append({"step": done, **metrics})
        if self.on_step is not None:
            self.on_step(unit, done, total, metrics)
        if self.request is not None:
            raise REQUESTS[self.request]

    def preview(self, unit: str, step: int, images: Sequence[PreviewImage]) -> None:
        self.previews[step] = list(images)

    def checkpoint(self, unit: str, state: Checkpoint) -> None:
        if self.directory is not None:
            save_checkpoint(self.directory / unit, state)

    def resume(self, unit: str) -> Checkpoint | None:
        if self.directory is None:
            return None
        found, discarded = load_newest(self.directory / unit)
        for name in discarded:
            self.note("checkpoint_discarded", f"{name} does not verify and was not used.")
        return found

    def note(self, code: str, message: str) -> None:
        self.notes.append((code, message))
