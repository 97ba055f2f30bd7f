"""The last look before something is published: whatever the executor left is read again, without tensor libraries.

Weights must be safetensors, finite, and say in their header what the job asked for; pictures must decode.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from backend.schemas.compressions import CompressSpec
from backend.schemas.evaluations import EvaluateSpec, EvaluationReport
from backend.schemas.merges.requests import MergeReport, MergeSpec
from backend.schemas.trainings import TrainSpec
from backend.schemas.weights import WeightsManifest

_HEADER_LIMIT_BYTES = 8_000_000
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
THUMBNAIL_PX = 384


class OutputInvalid(Exception):
    """What the executor left cannot be published; ``str`` says why, for the log."""


def weights_manifest(path: Path) -> WeightsManifest:
    """The manifest of a weights file whose tensors are complete and finite. Raises OutputInvalid."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _HEADER_LIMIT_BYTES:
            raise OutputInvalid("the header has an impossible length")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            manifest = WeightsManifest.model_validate_json(header.pop("__metadata__")["moongate"])
        except (ValueError, KeyError, ValidationError) as error:
            raise OutputInvalid("the header cannot be read") from error
        start = 8 + length
        ends = [entry["data_offsets"][1] for entry in header.values()]
        if not ends or path.stat().st_size != start + max(ends):
            raise OutputInvalid("the file is longer or shorter than its header says")
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            file.seek(start + first)
            if not _finite(file.read(last - first), entry["dtype"]):
                raise OutputInvalid(f"{name} is not finite")
    return manifest


def _finite(content: bytes, dtype: str) -> bool:
    if dtype in _FLOATS:
        return bool(np.isfinite(np.frombuffer(content, _FLOATS[dtype])).all())
    if dtype == "BF16":  # the upper half of a float32: all exponent bits set means infinite or not a number
        return bool(((np.frombuffer(content, "<u2") & 0x7F80) != 0x7F80).all())
    return True


def verified_weights(path: Path, spec: TrainSpec | CompressSpec | MergeSpec) -> WeightsManifest:
    """The same, and the manifest is about this training, these weights made smaller, or this merge. Raises
    OutputInvalid.
    """
    manifest = weights_manifest(path)
    if isinstance(spec, MergeSpec):
        return _of_merge(manifest, spec)
    if isinstance(spec, CompressSpec):
        return _of_compression(manifest, spec)
    asked = (
        spec.method,
        spec.base,
        spec.base_hash,
        spec.seed,
        sorted(concept.token for concept in spec.concepts),
    )
    got = (
        manifest.method,
        manifest.base,
        manifest.base_hash,
        manifest.seed,
        sorted(t.token for t in manifest.tokens),
    )
    if asked != got:
        raise OutputInvalid("the manifest is about another training")
    return manifest


def _of_compression(manifest: WeightsManifest, spec: CompressSpec) -> WeightsManifest:
    [parent] = spec.weights
    asked = (spec.base, spec.base_hash, spec.compression, [parent.file.id], sorted(parent.tokens))
    tokens = sorted(taught.token for taught in manifest.tokens)
    if asked != (manifest.base, manifest.base_hash, manifest.compression, manifest.parents, tokens):
        raise OutputInvalid("the manifest is about other weights, or another compression")
    return manifest


def _of_merge(manifest: WeightsManifest, spec: MergeSpec) -> WeightsManifest:
    parents = [weights.file.id for weights in spec.weights]
    asked = (spec.base, spec.base_hash, spec.method, parents, sorted(each.token for each in spec.concepts))
    tokens = sorted(taught.token for taught in manifest.tokens)
    if asked != (manifest.base, manifest.base_hash, manifest.merge, manifest.parents, tokens):
        raise OutputInvalid("the manifest is about another merge")
    return manifest


def verified_merge(report: dict[str, Any], spec: MergeSpec) -> MergeReport:
    """The report of a merge that has passed its verification, about these weights. Raises OutputInvalid."""
    try:
        found = MergeReport.model_validate(report.get("merge"))
    except ValidationError as error:
        raise OutputInvalid("the report of the merge cannot be read") from error
    if (found.merge, [each.id for each in found.inputs]) != (spec.method, [w.file.id for w in spec.weights]):
        raise OutputInvalid("the report is about another merge")
    if not found.verified:
        raise OutputInvalid("the merge has not passed its verification")
    return found


def verified_report(report: dict[str, Any], spec: dict[str, Any]) -> EvaluationReport:
    """A report of finite numbers about exactly what the evaluation asked for. Raises OutputInvalid."""
    try:
        found, asked = EvaluationReport.model_validate(report), EvaluateSpec.model_validate(spec)
    except ValidationError as error:
        raise OutputInvalid("the report cannot be read") from error
    pairs = [(each.weights, each.concept) for each in found.concepts]
    wanted = [(weights.file.id, concept) for weights in asked.weights for concept in weights.concepts]
    if pairs != wanted or found.judges != asked.judges or found.num_images != asked.num_images:
        raise OutputInvalid("the report is about another evaluation")
    for each in found.concepts:
        for measure in (each.subject_similarity, each.prompt_similarity, each.drift):
            known = (measure.value, measure.deviation, measure.half_width_95)
            numbers = [
                n
                for n in (*known, *measure.per_seed, measure.raw, measure.zero, measure.one)
                if n is not None
            ]
            if not np.isfinite(numbers).all():
                raise OutputInvalid("the report has numbers that are not finite")
    return found


def verified_picture(path: Path, size: tuple[int, int] | None = None) -> bytes:
    """The bytes of a thumbnail (WebP) of a picture that decodes, and has ``size``. Raises OutputInvalid."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
            if size is not None and picture.size != size:
                raise OutputInvalid(f"the picture is {picture.size}, not {size}")
            small = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise OutputInvalid("the picture does not decode") from error
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=85, method=4)
    return out.getvalue()
