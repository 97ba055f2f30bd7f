"""Reads an untrusted weights file, ours or another program's: ``python -m backend.weights_file PATH``, confined and
without tensor libraries.

Strict where the format is lenient: the header is bounded before it is parsed, its keys are unique, the tensors lie one
after the other without gaps and fill the file, every number is finite and of a size that weights have, and our own
metadata hold only what this program writes. What the file claims about a base model is for the caller to compare.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import ValidationError

from backend import strict_json
from backend.confined import confine
from backend.schemas.foreign_names import ADAPTER_METADATA
from backend.schemas.weights import ReadForeign, ReadWeights, TensorShape, WeightsManifest
from backend.schemas.weights_layout import WIDTH_BYTES

CPU_S = 60
HEADER_LIMIT_BYTES = 4 << 20
METADATA_LIMIT_CHARACTERS = 64_000
MOST_TENSORS = 20_000
LARGEST_VALUE = 1e4
"""No change of a matrix and no word vector comes near this; 1e30 would be finite and still make every picture NaN."""
METADATA_KEYS = re.compile(r"format|moongate|modelspec\.[a-z_]{1,40}|ss_[a-z_]{1,40}")
_CHUNK_BYTES = 8 << 20
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x89HDF", b"GGUF")
_OTHERWISE = (
    "Only safetensors files are read: pickled files (.ckpt, .pt, .bin) can run code. Convert it with a program you "
    "trust, on a machine you can spare."
)


class Refused(Exception):
    """``code`` and a sentence; the status is the parent's to choose."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


def read(path: Path) -> ReadWeights | ReadForeign:
    """The manifest and the shape of every tensor; of another program's file where the tensors stand. Raises Refused."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= min(HEADER_LIMIT_BYTES, size - 8):
            if head.startswith(
                _PICKLED
            ):  # asked only now: a sound header's length may begin with the same bytes
                raise Refused("unsupported-weights", _OTHERWISE)
            raise Refused(
                "weights-invalid", "This is not a safetensors file, or its header has an impossible length."
            )
        header = _header(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        ours = isinstance(metadata, dict) and "moongate" in metadata
        manifest = _manifest(metadata) if ours else None
        tensors = _tensors(header, size - 8 - length)
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            file.seek(8 + length + first)
            _require_sound(file, last - first, name, entry["dtype"])
    if manifest is not None:
        return ReadWeights(manifest=manifest, tensors=tensors)
    starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}
    return ReadForeign(tensors=tensors, starts=starts, adapter=_adapter(metadata))


def _header(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise Refused("weights-invalid", "The header does not begin as a safetensors header does.")
    try:
        header = strict_json.parsed(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Refused("weights-invalid", "The header is not readable JSON with unique keys.") from None
    if not isinstance(header, dict) or len(header) > MOST_TENSORS:
        raise Refused("weights-invalid", "The header does not list tensors, or far too many.")
    return header


def _adapter(metadata: object) -> dict[str, Any]:
    """The configuration that diffusers keeps in the header; nothing where there is none. The rest is not looked at."""
    said = metadata.get(ADAPTER_METADATA, "{}") if isinstance(metadata, dict) else None
    try:
        found = strict_json.parsed(said) if isinstance(said, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused("weights-invalid", "What the header says of the adapter is not readable.")
    return found


def _manifest(metadata: dict[str, Any]) -> WeightsManifest:
    for key, value in metadata.items():
        plain = isinstance(value, str) and len(value) <= METADATA_LIMIT_CHARACTERS and value.isprintable()
        if not METADATA_KEYS.fullmatch(key) or not plain:
            raise Refused(
                "weights-invalid", "The file's metadata holds something that Moongate does not write."
            )
    try:
        return WeightsManifest.model_validate_json(metadata["moongate"])
    except (ValidationError, RecursionError):
        raise Refused(
            "weights-invalid", "The description of the weights in the header is not complete or not right."
        ) from None


def _tensors(header: dict[str, Any], data_bytes: int) -> dict[str, TensorShape]:
    """Types and shapes; the extents must follow one another and fill the file exactly."""
    found: dict[str, TensorShape] = {}
    extents = []
    for name, entry in header.items():
        try:
            first, last = entry["data_offsets"]
            tensor = TensorShape.model_validate(
                {"dtype": entry["dtype"], "shape": entry["shape"]}, strict=True
            )
            right = len(entry) == 3 and type(first) is int and type(last) is int
        except (KeyError, TypeError, ValueError):
            raise Refused(
                "weights-invalid", "A tensor of the header is not described as safetensors does."
            ) from None
        count = 1
        for side in tensor.shape:
            count *= side
        if not right or last - first != count * WIDTH_BYTES[tensor.dtype]:
            raise Refused("weights-invalid", "A tensor's extent does not fit its shape.")
        found[name] = tensor
        extents.append((first, last))
    end = 0
    for first, last in sorted(extents):
        if first != end:
            raise Refused("weights-invalid", "The tensors overlap, or leave gaps between them.")
        end = last
    if not extents or end != data_bytes:
        raise Refused("weights-invalid", "The file is longer or shorter than its header says.")
    return found


def _require_sound(file: BinaryIO, count: int, name: str, dtype: str) -> None:
    while count:
        chunk = file.read(min(count, _CHUNK_BYTES))
        count -= len(chunk)
        if not chunk or not bool((np.abs(_numbers(chunk, dtype)) <= LARGEST_VALUE).all()):
            raise Refused(
                "weights-invalid",
                f"The tensor {_short(name)} has values that are not finite, or far too large.",
            )


def _numbers(chunk: bytes, dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(chunk, "<u2").astype("<u4") << 16).view("<f4")
    if dtype == "I8":
        return np.frombuffer(chunk, "i1").astype(np.int16)
    return np.frombuffer(chunk, "<f4" if dtype == "F32" else "<f2")


def _short(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "?", name)[:80]


def main() -> None:
    """Print what was read, or why it was refused, as one JSON object."""
    confine(CPU_S)
    try:
        sys.stdout.write(read(Path(sys.argv[1])).model_dump_json())
    except Refused as refused:
        sys.stdout.write(json.dumps({"code": refused.code, "detail": refused.detail}))


if __name__ == "__main__":
    main()
