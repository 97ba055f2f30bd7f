"""Input files of a job: pinned by sha256 when it was accepted, checked when it is claimed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from backend.schemas.compressions import CompressSpec
from backend.schemas.evaluations import EvaluateSpec
from backend.schemas.generations import GenerateSpec
from backend.schemas.merges.requests import MergeSpec
from backend.schemas.trainings import PinnedFile, TrainSpec
from backend.storage import Storage


class InputInvalid(Exception):
    """An input is missing or differs from what was pinned; ``str`` names its id."""


def _of_training(spec: dict[str, Any]) -> list[PinnedFile]:
    return [photo for concept in TrainSpec.model_validate(spec).concepts for photo in concept.photos]


def _of_generation(spec: dict[str, Any]) -> list[PinnedFile]:
    pinned = GenerateSpec.model_validate(spec)
    photos = [photo for concept in pinned.check.concepts for photo in concept.photos] if pinned.check else []
    return [*(weights.file for weights in pinned.weights), *photos]


def _of_compression(spec: dict[str, Any]) -> list[PinnedFile]:
    pinned = CompressSpec.model_validate(spec)
    photos = [photo for concept in pinned.concepts for photo in concept.photos]
    return [*(weights.file for weights in pinned.weights), *photos]


def _of_merge(spec: dict[str, Any]) -> list[PinnedFile]:
    return [weights.file for weights in MergeSpec.model_validate(spec).weights]


def _of_evaluation(spec: dict[str, Any]) -> list[PinnedFile]:
    pinned = EvaluateSpec.model_validate(spec)
    photos = [photo for concept in pinned.concepts for photo in concept.photos]
    return [*(weights.file for weights in pinned.weights), *photos]


PINNED: dict[str, Callable[[dict[str, Any]], list[PinnedFile]]] = {
    "train": _of_training,
    "generate": _of_generation,
    "compress": _of_compression,
    "merge": _of_merge,
    "evaluate": _of_evaluation,
}
_WORDS = {
    "train": "Photo",
    "generate": "Weights or photo",
    "compress": "Weights or photo",
    "merge": "Weights",
    "evaluate": "Weights or photo",
}


def verified_inputs(storage: Storage, kind: str, spec: dict[str, Any]) -> dict[str, str]:
    """Storage key -> local file, for every input of the spec. Raises InputInvalid."""
    try:
        pinned = PINNED[kind](spec) if kind in PINNED else []
    except ValidationError as error:
        raise InputInvalid("The job's specification cannot be read.") from error
    found = {}
    for file in pinned:
        try:
            with storage.open(file.storage_key) as stream:
                digest = hashlib.sha256()
                while block := stream.read(1 << 20):
                    digest.update(block)
        except (OSError, ValueError) as error:
            raise InputInvalid(f"{_WORDS[kind]} {file.id} is gone.") from error
        if digest.hexdigest() != file.sha256:
            raise InputInvalid(
                f"{_WORDS[kind]} {file.id} is damaged: its bytes are not those that were accepted."
            )
        found[file.storage_key] = str(storage.path(file.storage_key))
    return found
