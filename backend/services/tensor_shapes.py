"""What a stored weights file holds, from its header alone: the tensors are not read."""

from __future__ import annotations

import json

from backend.models import ConceptWeights
from backend.storage import Storage

HEADER_LIMIT_BYTES = 4 << 20


def tensor_shapes(storage: Storage, row: ConceptWeights) -> dict[str, list[int]]:
    """{name: shape}. Raises as `typed_shapes`."""
    return {name: shape for name, (_, shape) in typed_shapes(storage, row).items()}


def typed_shapes(storage: Storage, row: ConceptWeights) -> dict[str, tuple[str, list[int]]]:
    """{name: (type as safetensors spells it, shape)}. Raises OSError and ValueError where the file is gone or is none
    of ours.
    """
    with storage.open(row.storage_key) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT_BYTES:
            raise ValueError("The header is longer than any of ours.")
        header = json.loads(file.read(length))
    try:
        return {
            name: (entry["dtype"], list(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError):
        raise ValueError("The header is no list of tensors.") from None
