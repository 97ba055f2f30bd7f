"""How the bytes of a native weights file are laid out: what it says to other programs, its header, and how large a file
will be before it is written.

A safetensors file is eight bytes of length, a JSON header padded to eight bytes, and the tensors one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from backend.schemas.weights import WeightsManifest

WIDTH_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}
"""Bytes of a number of each type that a weights file may hold."""
_LENGTH_BYTES, _MOST_PADDING_BYTES = 8, 7
_WIDEST_BUDGET = float(2**40)


def file_metadata(manifest: WeightsManifest) -> dict[str, str]:
    """The strings beside the tensors: the manifest under ``moongate``, and what other tools look for."""
    names = ", ".join(taught.token for taught in manifest.tokens)
    return {
        "format": "pt",
        "modelspec.architecture": f"{manifest.base_family}/{manifest.method}",
        "modelspec.implementation": "moongate",
        "modelspec.prediction_type": manifest.prediction_type.removesuffix("_prediction"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": names,
        "modelspec.trigger_phrase": ", ".join(f"<{taught.token}>" for taught in manifest.tokens),
        "moongate": manifest.model_dump_json(),
        "ss_base_model_version": manifest.base_family,
        "ss_network_module": manifest.method,
        "ss_seed": str(manifest.seed),
        "ss_sd_model_hash": manifest.base_hash,
        "ss_steps": str(manifest.steps),
    }


def encoded_header(metadata: Mapping[str, str], entries: Mapping[str, Any]) -> bytes:
    """Length and header; entries in the order of their names, so that equal contents give equal bytes."""
    header = {"__metadata__": metadata, **{name: entries[name] for name in sorted(entries)}}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded


def bare_bytes(manifest: WeightsManifest) -> int:
    """At most so many bytes does a file without tensors have."""
    return _LENGTH_BYTES + len(_compact({"__metadata__": file_metadata(manifest)})) + _MOST_PADDING_BYTES


def tensor_bytes(name: str, dtype: str, shape: Sequence[int], largest_file_bytes: int) -> int:
    """At most so many bytes does a tensor add to a file of at most ``largest_file_bytes``, its entry in the header
    included.
    """
    entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [largest_file_bytes] * 2}
    return len(_compact({name: entry})) - 1 + WIDTH_BYTES[dtype] * prod(shape)


def least_bytes(
    manifest: WeightsManifest, shapes: Mapping[str, tuple[str, Sequence[int]]], largest_file_bytes: int
) -> int:
    """Size of a file that holds nothing but its words: no budget can be smaller. ``shapes``: type and shape of every
    tensor that the weights have now. Does not depend on the budget that the manifest names.
    """
    if manifest.compression is not None and manifest.compression.criterion == "bytes":
        widest = manifest.compression.model_copy(update={"value": _WIDEST_BUDGET})
        manifest = manifest.model_copy(update={"compression": widest})
    words = {name: each for name, each in shapes.items() if name.startswith("token.")}
    return bare_bytes(manifest) + sum(
        tensor_bytes(name, dtype, shape, largest_file_bytes) for name, (dtype, shape) in words.items()
    )


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
