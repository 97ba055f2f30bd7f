"""The native weights file: exact, the same bytes for the same contents, and strict."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from backend.schemas.weights import TaughtToken, WeightsManifest
from worker.ml.concept_weights import ConceptWeights, verify
from worker.ml.errors import WeightsInvalid

SITE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
MANIFEST = WeightsManifest(
    method="custom-diffusion",
    side="text",
    base="toyworld",
    base_family="toyworld",
    base_hash="0" * 64,
    prediction_type="v_prediction",
    tokens=[TaughtToken(token="stark-2", class_noun="dog", kind="subject")],
    params={"steps": 3},
    seed=4,
    steps=3,
    code_version="0.1.0",
)


def tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "token.stark-2.learned": torch.randn(1, 8, generator=draw),
        "token.stark-2.start": torch.randn(1, 8, generator=draw),
        f"site.{SITE}.delta": torch.randn(5, 8, generator=draw),
    }


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    weights = ConceptWeights(MANIFEST, tensors())
    weights.save(tmp_path / "w.safetensors")
    loaded = ConceptWeights.load(tmp_path / "w.safetensors")
    assert loaded.manifest == MANIFEST == verify(tmp_path / "w.safetensors")
    assert loaded.tensors.keys() == weights.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in weights.tensors.items())
    assert loaded.to_bytes() == weights.to_bytes()
    assert loaded.site_parts().keys() == {SITE}


def test_another_process_reads_it_and_writes_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    ConceptWeights(MANIFEST, tensors()).save(path)
    program = (
        "import sys; from pathlib import Path; from worker.ml.concept_weights import ConceptWeights\n"
        "sys.stdout.buffer.write(ConceptWeights.load(Path(sys.argv[1])).to_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True)
    assert done.stdout == path.read_bytes()


def test_other_tools_find_their_basics(tmp_path: Path) -> None:
    ConceptWeights(MANIFEST, tensors()).save(tmp_path / "w.safetensors")
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.architecture"] == "toyworld/custom-diffusion"
    assert metadata["modelspec.trigger_phrase"] == "<stark-2>"
    assert metadata["ss_steps"] == "3"
    assert WeightsManifest.model_validate_json(metadata["moongate"]) == MANIFEST


def put(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.pop(name) if tensor is None else held.update({name: tensor})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (put("token.stark-2.learned", None), "learned is missing"),
        (put("token.stark-2.start", None), "start is missing"),
        (put("token.stark-2.learned", torch.zeros(2, 8)), "shape"),
        (put("token.stark-2.learned", torch.zeros(8)), "shape"),
        (put("token.wolf.learned", torch.zeros(1, 8)), "not expected"),
        (put("site.a/../b.delta", torch.zeros(1, 8)), "not expected"),
        (put("surprise", torch.zeros(1)), "not expected"),
        (put(f"site.{SITE}.delta", torch.full((5, 8), float("nan"))), "not finite"),
        (put(f"site.{SITE}.delta", torch.full((5, 8), float("inf"))), "not finite"),
        (put(f"site.{SITE}.delta", torch.zeros(5, 8, dtype=torch.int64)), "type"),
    ],
)
def test_wrong_tensors_are_refused(
    spoil: Callable[[dict[str, Tensor]], object], sentence: str, tmp_path: Path
) -> None:
    held = tensors()
    spoil(held)
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(held, path, metadata={"moongate": MANIFEST.model_dump_json()})
    with pytest.raises(WeightsInvalid, match=sentence) as caught:
        ConceptWeights.load(path)
    assert caught.value.code == "weights_invalid"


def without(key: str) -> str:
    content = MANIFEST.model_dump(mode="json")
    del content[key]
    return json.dumps(content)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"moongate": "{"},
        {"moongate": without("base_hash")},
        {"moongate": MANIFEST.model_dump_json()[:-1] + ',"x":1}'},
    ],
)
def test_wrong_headers_are_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tensors(), path, metadata=metadata)
    with pytest.raises(WeightsInvalid, match="header"):
        ConceptWeights.load(path)


def cut(content: bytes) -> bytes:
    return content[:-7]


def long_header(content: bytes) -> bytes:
    return (1 << 60).to_bytes(8, "little") + content[8:]


def nested(content: bytes) -> bytes:
    header = b"[" * 100_000
    return len(header).to_bytes(8, "little") + header


def wrong_offsets(content: bytes) -> bytes:
    return content.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1)


@pytest.mark.parametrize(
    "spoil", [lambda c: b"", lambda c: b"PK\x03\x04junk" * 9, cut, long_header, nested, wrong_offsets]
)
def test_damaged_files_are_refused(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(spoil(ConceptWeights(MANIFEST, tensors()).to_bytes()))
    with pytest.raises(WeightsInvalid):
        ConceptWeights.load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsInvalid, match="cannot be read"):
        ConceptWeights.load(tmp_path / "none.safetensors")
