"""ConceptWeights: how a concept was learned, in one self-describing safetensors file.

Header ``moongate``: the `WeightsManifest` as JSON; beside it ``modelspec.*`` and ``ss_*`` basics for other
tools. Tensors:

- ``token.<name>.learned`` and ``token.<name>.start`` [vectors, d_embedding], or [layers, vectors, d_embedding]
  where the manifest names layers: V* and the row it started from. Not there for a token of 0 vectors;
- ``token.<name>.key``, ``.dual`` and, for Perfusion, ``.class_state`` [1, d]: the text state that a rank-one
  edit answers to;
- ``site.<module path>.<part>``: what a method changes at a site; Custom Diffusion writes ``delta`` [o, d],
  the difference from the base's matrix. Differences, not absolute matrices: on another base they would be
  silently transplanted, and they would not compose. LoRA writes ``down``, ``up`` and ``alpha``, SVDiff ``shift``
  and ``checksum``, Perfusion ``target`` [concepts, o], rank-one edits ``change`` [concepts, o], both in the order
  of the manifest's tokens. Weights that were made smaller hold factors wherever these take less room
  (`worker.ml.stored_changes`), and lack a site of which nothing was kept;
- ``merge.rows`` [r, d] of a closed-form merge: the row space of all its changes, ``site.<module path>.values`` [o, r]
  being what it does at each site; with ``merge.scale`` [r] where both are of 8 bits (`worker.ml.shared_rows`);
- ``encoder.<module path>.<part>``: the same for the text encoder.

The bytes are a function of the contents alone. Reading is strict; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from backend.schemas.weights import WeightsManifest
from backend.schemas.weights_layout import encoded_header, file_metadata
from worker.ml.errors import WeightsInvalid

CODE_VERSION = version("moongate")
MAX_FILE_BYTES = 4 << 30
MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
SHARED_ROWS, SHARED_SCALE = "merge.rows", "merge.scale"
IN_BYTES = (".down", ".up", ".values", SHARED_ROWS)
"""Ends of the names of tensors that may hold 8-bit numbers."""
TOKEN_PARTS = ("key", "dual", "class_state")
MODULE_KEY = re.compile(r"^(site|encoder)\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.([a-z_]+)$")


@dataclass(frozen=True, eq=False)
class ConceptWeights:
    """Immutable. Tensors are on the CPU, finite, and named as the module says."""

    manifest: WeightsManifest
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check(self.manifest, self.tensors)

    @cached_property
    def identity(self) -> str:
        """sha256 of the manifest and of every tensor's name, type, shape and numbers, hexadecimal: equal for equal
        contents, wherever they come from.
        """
        digest = hashlib.sha256(self.manifest.model_dump_json().encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def site_parts(self, of: Literal["site", "encoder"] = "site") -> dict[str, dict[str, Tensor]]:
        """{module: {part: tensor}} of the ``site.*`` tensors, or of the ``encoder.*`` ones."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            if (match := MODULE_KEY.match(key)) and match[1] == of:
                parts.setdefault(match[2], {})[match[3]] = tensor
        return parts

    def to_bytes(self) -> bytes:
        """The file's bytes; equal contents give equal bytes (safetensors alone leaves the header's order to
        chance).
        """
        content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in self.tensors.items()})
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        data: bytes = content[8 + length :]
        return encoded_header(file_metadata(self.manifest), header) + data

    def save(self, path: Path) -> None:
        """Writes the file. Making it durable and visible is the publisher's part."""
        path.write_bytes(self.to_bytes())

    @staticmethod
    def load(path: Path) -> ConceptWeights:
        """Reads and checks everything. Raises `WeightsInvalid` with the reason."""
        header = read_header(path)
        try:
            manifest = WeightsManifest.model_validate_json(header["__metadata__"]["moongate"])
        except (KeyError, TypeError):
            raise WeightsInvalid(
                "The file has no moongate header: it is not a native weights file."
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            raise WeightsInvalid(
                f"The header is wrong: {'.'.join(map(str, first['loc']))}: {first['msg']}."
            ) from None
        try:
            tensors = safetensors.torch.load_file(path)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise WeightsInvalid("The file is damaged: its tensors cannot be read.") from error
        return ConceptWeights(manifest, tensors)


def verify(path: Path) -> WeightsManifest:
    """Reads the whole file strictly and returns its manifest. Raises `WeightsInvalid`."""
    return ConceptWeights.load(path).manifest


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header, with its length bounded before anything is parsed or mapped."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size > MAX_FILE_BYTES or size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise WeightsInvalid("The file is not a safetensors file of a sensible size.")
            header = json.loads(file.read(length))
    except OSError as error:
        raise WeightsInvalid("The file cannot be read.") from error
    except (ValueError, RecursionError):
        raise WeightsInvalid("The file is not a safetensors file.") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise WeightsInvalid("The file's header is not a list of tensors of a sensible length.")
    return header


def check(manifest: WeightsManifest, tensors: Mapping[str, Tensor]) -> None:
    """Names, dtypes, finiteness, and that every taught token has its rows. Raises `WeightsInvalid`."""
    expected = {
        f"token.{taught.token}.{part}": [*([len(taught.layers)] if taught.layers else []), taught.vectors]
        for taught in manifest.tokens
        for part in ("learned", "start")
        if taught.vectors
    }
    if missing := sorted(expected.keys() - tensors.keys()):
        raise WeightsInvalid(f"The tensor {missing[0]} is missing.")
    further = {f"token.{taught.token}.{part}" for taught in manifest.tokens for part in TOKEN_PARTS}
    if manifest.merge is not None:
        further |= {SHARED_ROWS, SHARED_SCALE}
    for name, tensor in tensors.items():
        if name not in expected and name not in further and not MODULE_KEY.match(name):
            raise WeightsInvalid(f"The tensor {name[:80]} is not expected here.")
        if name in expected and list(tensor.shape[:-1]) != expected[name]:
            wanted = ", ".join(map(str, expected[name]))
            raise WeightsInvalid(f"The tensor {name} has shape {list(tensor.shape)}, not [{wanted}, d].")
        if tensor.dtype not in DTYPES or (tensor.dtype is torch.int8 and not name.endswith(IN_BYTES)):
            raise WeightsInvalid(f"The tensor {name} is of type {tensor.dtype}.")
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsInvalid(f"The tensor {name} has values that are not finite.")
