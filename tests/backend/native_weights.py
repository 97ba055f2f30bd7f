"""Native weights files for tests, sound and otherwise, as another studio would have exported them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from safetensors.numpy import save

from backend.schemas.methods import CARDS
from tests.backend.workshop import TEXT_SITES, TOKEN_WIDTH

Tensors = dict[str, Any]


def manifest(*tokens: str, **changes: Any) -> dict[str, Any]:
    """What the header says of weights that were learned on the workshop's toy base."""
    card = CARDS["custom-diffusion"]
    said: dict[str, Any] = {
        "format_version": 1, "method": card.name, "side": "text", "base": "toy", "base_family": "toyworld",
        "base_hash": "ab" * 32, "prediction_type": "epsilon", "params": card.params_type().model_dump(mode="json"),
        "seed": 5, "steps": 250, "parents": [], "compression": None, "merge": None, "origin": None, "scale": 1.0,
        "code_version": "0.1.0",
        "tokens": [
            {"token": t, "class_noun": "dog", "kind": "subject", "vectors": 1, "layers": []} for t in tokens or ("mia",)
        ],
    }  # fmt: skip
    return said | changes


def tensors(*tokens: str, dtype: str = "float32") -> Tensors:
    """The tensors that go with it."""
    rng = np.random.default_rng(1)
    shapes = {f"site.{site}.delta": shape for site, shape in TEXT_SITES.items()}
    rows = {
        f"token.{t}.{part}": [1, TOKEN_WIDTH] for t in tokens or ("mia",) for part in ("learned", "start")
    }
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in (shapes | rows).items()}


def perfusion(*tokens: str, **changes: Any) -> dict[str, Any]:
    """The header of weights of Perfusion: the word stands for its class noun."""
    return of_method("perfusion", *tokens, **changes)


def rank_one(*tokens: str, **changes: Any) -> dict[str, Any]:
    """The header of a rank-one edit."""
    return of_method("rank-one", *tokens, **changes)


def of_method(name: str, *tokens: str, **changes: Any) -> dict[str, Any]:
    """`manifest` of another method, with its parameters."""
    params = CARDS[name].params_type().model_dump(mode="json")
    noun = "" if name == "perfusion" else "dog"
    taught = [
        {"token": t, "class_noun": noun, "kind": "subject", "vectors": 1, "layers": []}
        for t in tokens or ("mia",)
    ]
    return manifest(**{"method": name, "params": params, "tokens": taught, **changes})


def one_word_tensors(said: dict[str, Any]) -> Tensors:
    """The tensors that go with `perfusion` and `rank_one`: a row a token for every value matrix, states of tokens."""
    rng = np.random.default_rng(2)
    tokens = [taught["token"] for taught in said["tokens"]]
    part, states = {
        "perfusion": ("target", ["key", "dual", "class_state"]),
        "rank-one": ("change", ["key", "dual"]),
    }[said["method"]]
    shapes = {
        f"site.{site}.{part}": [len(tokens), shape[0]]
        for site, shape in TEXT_SITES.items()
        if site.endswith("to_v")
    }
    shapes |= {
        f"token.{t}.{state}": [1, TOKEN_WIDTH] for t in tokens for state in (*states, "learned", "start")
    }
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def smaller(rank: int = 2, *, int8: bool = False) -> bytes:
    """A file whose changes were cut to ``rank``; of one site nothing was kept."""
    held = tensors()
    dropped, site = (name.removesuffix(".delta") for name in sorted(held) if name.startswith("site."))
    del held[f"{dropped}.delta"], held[f"{site}.delta"]
    rows, columns = TEXT_SITES[site.removeprefix("site.")]
    kind = "int8" if int8 else "float16"
    held |= {f"{site}.down": np.ones((rank, columns), kind), f"{site}.up": np.ones((rows, rank), kind)}
    if int8:
        held[f"{site}.scale"] = np.full(rank, 0.01, "float32")
    cut = {"method": "svd", "criterion": "rank", "value": rank, "precision": kind}
    parents = ["019a0000-0000-7000-8000-000000000000"]
    return native(manifest(compression=cut, parents=parents), held)


def native(said: dict[str, Any] | str | None = None, data: Tensors | None = None, **metadata: str) -> bytes:
    """The file's bytes."""
    described = said if isinstance(said, str) else json.dumps(said or manifest())
    return bytes(save(data or tensors(), metadata={"format": "pt", "moongate": described, **metadata}))


def with_header(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, whatever it says."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def repacked(change: Any) -> bytes:
    """A sound file whose header ``change`` has edited."""
    whole = native()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    changed = change(header)
    text = changed if isinstance(changed, str) else json.dumps(header)
    return with_header(text.encode(), whole[8 + length :])
