"""Weights under the names of other programs: the same numbers, byte for byte, under another header (decision 12).

- ``kohya`` (``webui`` is the same): LoRA for A1111, ComfyUI and kohya's scripts, LoHa and LoKr as LyCORIS names them;
- ``diffusers``: LoRA for ``load_lora_weights``, alphas in the header as diffusers writes them;
- ``embedding``: the word alone, for ``load_textual_inversion`` and the embeddings folder of web UIs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import Conflict, Invalid, NotFound
from backend.models import ConceptWeights
from backend.schemas.foreign_names import (
    ADAPTER_METADATA,
    DIFFUSERS_PARTS,
    FOREIGN_FORMATS,
    KOHYA_PARTS,
    ForeignFormat,
    diffusers_component,
    kohya_module,
)
from backend.schemas.weights import WeightsManifest
from backend.schemas.weights_layout import encoded_header, file_metadata
from backend.services.tensor_shapes import tensor_shapes
from backend.storage import Storage

CHUNK_BYTES = 1 << 20
VERSIONS = {"epsilon": "sd_v1", "v_prediction": "sd_v2_v", "flow": ""}
"""What kohya calls the kind of base model of our families, by what it predicts."""


@dataclass(frozen=True)
class Part:
    """A tensor of the new file: its entry, and its bytes or where they stand in the old one."""

    dtype: str
    shape: list[int]
    source: tuple[int, int] | bytes

    @property
    def size_bytes(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source[1] - self.source[0]


@dataclass(frozen=True)
class Export:
    """A file to be sent."""

    path: Path
    metadata: Mapping[str, str]
    parts: Mapping[str, Part]

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, at most a megabyte at a time."""
        entries, end = {}, 0
        for name, part in sorted(self.parts.items()):
            extent = [end, end + part.size_bytes]
            entries[name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": extent}
            end = extent[1]
        yield encoded_header(self.metadata, entries)
        with self.path.open("rb") as file:
            for _, part in sorted(self.parts.items()):
                if isinstance(part.source, bytes):
                    yield part.source
                    continue
                file.seek(part.source[0])
                left = part.size_bytes
                while left:
                    chunk = file.read(min(left, CHUNK_BYTES))
                    left -= len(chunk)
                    yield chunk


def require_known(file_format: str) -> None:
    """Invalid for a format that nobody knows."""
    if file_format not in ("native", *FOREIGN_FORMATS):
        raise Invalid.at("/format", "There is no such format.")


def formats(manifest: WeightsManifest) -> list[ForeignFormat]:
    """Those that have words for the weights."""
    found: list[ForeignFormat] = []
    cut = manifest.compression
    thin = (
        manifest.method == "lora"
        and cut is not None
        and cut.precision != "int8"
        and cut.criterion != "token-only"
    )
    if manifest.method in KOHYA_PARTS and (cut is None or thin) and not manifest.params.get("use_dora"):
        found += ["kohya", "webui"]
        if manifest.method == "lora":
            found.append("diffusers")
    words = [taught for taught in manifest.tokens if taught.vectors]
    if len(words) == 1 and not words[0].layers:
        found.append("embedding")
    return found


def offered(storage: Storage, row: ConceptWeights) -> list[ForeignFormat]:
    """The same of stored weights; none while their file cannot be read."""
    try:
        tensor_shapes(storage, row)
    except (OSError, ValueError):
        return []
    return formats(WeightsManifest.model_validate(row.manifest))


def export(storage: Storage, row: ConceptWeights, file_format: str) -> Export:
    """The weights in a foreign format. Conflict where the format has no words for them, NotFound where their file
    cannot be read.
    """
    path = storage.path(row.storage_key)
    manifest = WeightsManifest.model_validate(row.manifest)
    if file_format not in formats(manifest):
        raise Conflict("These weights are not written in that format.", code="export-first")
    if file_format not in offered(storage, row):
        raise NotFound
    held = _held(path)
    if file_format == "embedding":
        return _embedding(path, manifest, held)
    modules = _modules(held)
    if file_format == "diffusers":
        return _diffusers(path, manifest, modules)
    return _kohya(path, manifest, modules)


def _held(path: Path) -> dict[str, Part]:
    """The tensors of a file of our own."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: Part(
            entry["dtype"],
            entry["shape"],
            (start + entry["data_offsets"][0], start + entry["data_offsets"][1]),
        )
        for name, entry in header.items()
    }


def _modules(held: Mapping[str, Part]) -> dict[str, dict[str, Part]]:
    """{"site.<path>" or "encoder.<path>": {part: tensor}}."""
    found: dict[str, dict[str, Part]] = {}
    for name, part in held.items():
        module, _, last = name.rpartition(".")
        if module.startswith(("site.", "encoder.")):
            found.setdefault(module, {})[last] = part
    return found


def _kohya(path: Path, manifest: WeightsManifest, modules: Mapping[str, Mapping[str, Part]]) -> Export:
    """Every module has its own alpha; where ours has none it is the rank."""
    parts: dict[str, Part] = {}
    names = KOHYA_PARTS[manifest.method]
    for module, held in modules.items():
        parts |= {f"{kohya_module(module)}.{names[part]}": tensor for part, tensor in held.items()}
        if "down" in held and "alpha" not in held:
            alpha = struct.pack("<f", held["down"].shape[0])
            parts[f"{kohya_module(module)}.alpha"] = Part("F32", [], alpha)
    dims = sorted({held["down"].shape[0] for held in modules.values() if "down" in held})
    alphas = sorted({_alpha(path, held) for held in modules.values() if "down" in held})
    lycoris = {} if manifest.method == "lora" else {"algo": manifest.method}
    metadata = _told(manifest) | {
        "ss_v2": str(manifest.prediction_type == "v_prediction"),
        "ss_base_model_version": VERSIONS[manifest.prediction_type],
        "ss_network_module": "lycoris.kohya" if lycoris else "networks.lora",
        "ss_network_dim": str(dims[0]) if len(dims) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas[0]) if len(alphas) == 1 else "Dynamic",
        "ss_network_args": json.dumps(lycoris),
    }
    return Export(path, metadata, parts)


def _diffusers(path: Path, manifest: WeightsManifest, modules: Mapping[str, Mapping[str, Part]]) -> Export:
    """Rank and alpha of every module stand in the header: without them diffusers takes alpha for the rank."""
    parts: dict[str, Part] = {}
    told: dict[str, Any] = {}
    for module, held in modules.items():
        component, name = diffusers_component(module)
        parts |= {f"{component}.{name}.{DIFFUSERS_PARTS[part]}": held[part] for part in DIFFUSERS_PARTS}
        known = told.setdefault(component, {"rank_pattern": {}, "alpha_pattern": {}, "target_modules": []})
        target = name.removeprefix("text_model.")  # names match from their end, with and without it
        known["rank_pattern"][target], known["alpha_pattern"][target] = (
            held["down"].shape[0],
            _alpha(path, held),
        )
        known["target_modules"].append(target)
    for known in told.values():
        first = known["target_modules"][0]
        known |= {
            "r": known["rank_pattern"][first],
            "lora_alpha": known["alpha_pattern"][first],
            "peft_type": "LORA",
        }
    flat = {f"{component}.{key}": value for component, known in told.items() for key, value in known.items()}
    return Export(path, _told(manifest) | {ADAPTER_METADATA: json.dumps(flat, sort_keys=True)}, parts)


def _embedding(path: Path, manifest: WeightsManifest, held: Mapping[str, Part]) -> Export:
    """One tensor under the word's name, [vectors, d]."""
    [word] = [taught for taught in manifest.tokens if taught.vectors]
    return Export(path, _told(manifest), {f"<{word.token}>": held[f"token.{word.token}.learned"]})


def _alpha(path: Path, held: Mapping[str, Part]) -> float:
    if "alpha" not in held:
        return float(held["down"].shape[0])
    alpha = held["alpha"]
    assert not isinstance(alpha.source, bytes)
    with path.open("rb") as file:
        file.seek(alpha.source[0])
        return float(struct.unpack({"F32": "<f", "F16": "<e"}[alpha.dtype], file.read(alpha.size_bytes))[0])


def _told(manifest: WeightsManifest) -> dict[str, str]:
    """What every program shows, without our own manifest: the file is no longer one of ours."""
    metadata = file_metadata(manifest)
    del metadata["moongate"]
    words = ", ".join(
        " ".join(filter(None, (f"<{taught.token}>" if taught.vectors else "", taught.class_noun)))
        for taught in manifest.tokens
    )
    return metadata | {
        "modelspec.trigger_phrase": words,
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }
