"""Who grades: one judge that reads pictures against words, and one that tells individuals apart.

Two kinds of panels, one protocol: the judges that lie beside a base model (toyworld's, `judges`), and those that an
administrator registers as folders (CLIP with DINO, `registered`). Registered ones grade every base; without them a
base has its own or nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from backend.schemas.bases import JudgesDescription
from worker.ml.errors import JudgesUnusable
from worker.ml.evaluation import registered
from worker.ml.evaluation.judges import IMAGE_TEXT_FILE, SUBJECT_FILE, load_judges

OWN_FOLDER = "judges"
OWN_NAME = "the base model's own judges"


class Panel(Protocol):
    """Pictures are float [B, 3, H, W] in [-1, 1]; features are float32 rows of unit length on the CPU, no gradients."""

    @property
    def hash(self) -> str:
        """sha256 over the judges' weights."""

    def image_text_features(self, pixels: Tensor) -> Tensor:
        """What a picture shows, in words' space: [B, d]."""

    def text_features(self, texts: list[str]) -> Tensor:
        """[len(texts), d], same space. Raises ValueError for a text that is too long: nothing is cut."""

    def subject_features(self, pixels: Tensor) -> Tensor:
        """Which individual a picture shows: [B, d']."""


def describe_panel(base_folder: Path, folders: Sequence[Path]) -> JudgesDescription | None:
    """Who would grade on the base in ``base_folder``, ``folders`` being the registered ones; None when nobody would.

    Reads the weights' bytes once and loads nothing. Raises `JudgesUnusable`: registered judges that cannot serve
    are never replaced by others in silence.
    """
    if folders:
        return registered.describe(folders)
    own = [base_folder / OWN_FOLDER / name for name in (IMAGE_TEXT_FILE, SUBJECT_FILE)]
    if not all(file.is_file() for file in own):
        return None
    return JudgesDescription(name=OWN_NAME, hash=hash_of(own))


def load_panel(base_folder: Path, folders: Sequence[Path], device: str = "cpu") -> Panel:
    """The judges that `describe_panel` speaks of. Raises `JudgesUnusable`."""
    if folders:
        return registered.load(folders, device)
    if describe_panel(base_folder, ()) is None:
        raise JudgesUnusable("This base model has no judges of its own, and none are registered.")
    return load_judges(base_folder / OWN_FOLDER)


def hash_of(files: Sequence[Path]) -> str:
    """sha256 over the bytes of ``files`` in this order, as `judges.load_judges` computes it."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
