"""The sum of changes against a loop over numbers, for weights of different methods and sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from backend.schemas.merges.linear import LinearParams
from backend.schemas.weights import Compression
from tests.ml.merging import made, taught
from worker.ml.compression import compress
from worker.ml.errors import MethodUnsupported
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES, MergeInput
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun


def test_every_number_is_the_sum_of_scaled_numbers(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    """Custom Diffusion's matrices and a LoRA of all attention layers: weight side together."""
    one = made(model, "stark", "dog", seed=1)
    other = taught(model, "mimi", "cat", tmp_path, photos, "lora", steps=2, learning_rate=0.1)
    inputs = [MergeInput("a", one, 0.5), MergeInput("b", other, 2.0)]
    result = MERGES["linear"].merge(model, inputs, LinearParams(strength=0.8), InProcessRun())
    assert result.weights.manifest.side == "weights"
    assert result.report.verified
    installation = reader_of(result.weights).installation(model, result.weights)
    assert installation is not None
    expected: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    for weights, factor in ((one, 0.8 * 0.5), (other, 0.8 * 2.0)):
        for name, parts in weights.site_parts().items():
            if "delta" in parts:
                change = parts["delta"].double().numpy()
            else:
                up, down = parts["up"].double().numpy(), parts["down"].double().numpy()
                change = float(parts["alpha"]) / len(down) * np.einsum("or,ri->oi", up, down)
            expected[name] = expected.get(name, np.zeros_like(change)) + factor * change
    assert installation.denoiser.keys() == {f"{name}.weight" for name in expected}
    for name, numbers in expected.items():
        found = installation.denoiser[f"{name}.weight"].dense().numpy()
        np.testing.assert_allclose(found, numbers, rtol=1e-5, atol=1e-7)
    rows = reader_of(result.weights).edit(model, result.weights).tokens["stark"]
    start, learned = (one.tensors[f"token.stark.{part}"] for part in ("start", "learned"))
    torch.testing.assert_close(rows.learned, start + 0.5 * (learned - start))


def test_a_sum_that_was_made_smaller_is_still_read(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    inputs = [MergeInput(token, made(model, token, "dog", seed=at)) for at, token in enumerate("ab")]
    both = MERGES["linear"].merge(model, inputs, LinearParams(), InProcessRun()).weights
    for wanted in (Compression(criterion="rank", value=9, precision="float32"),
                   Compression(criterion="rank", value=9, precision="int8")):  # fmt: skip
        smaller = compress(model, both, wanted, "parent", InProcessRun()).weights
        found, whole = (reader_of(each).deltas(model, each) for each in (smaller, both))
        assert found.keys() == whole.keys()
        for name, delta in whole.items():
            u, sigma, vt = np.linalg.svd(delta.double().numpy(), full_matrices=False)
            cut = (u[:, :9] * sigma[:9]) @ vt[:9]
            assert np.linalg.norm(found[name].numpy() - cut) < 0.02 * np.linalg.norm(cut)


def test_text_side_stays_text_side_and_gates_are_refused(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    both = [
        MergeInput("a", made(model, "stark", "dog")),
        MergeInput("b", made(model, "mimi", "cat", method="lora")),
    ]
    assert MERGES["linear"].merge(model, both, LinearParams(), InProcessRun()).weights.manifest.side == "text"
    gated = MergeInput("g", taught(model, "one", "cat", tmp_path, photos, "perfusion", steps=1))
    with pytest.raises(MethodUnsupported, match="opens a gate"):
        MERGES["linear"].merge(model, [*both, gated], LinearParams(), InProcessRun())
    encoder = MergeInput(
        "e", taught(model, "enc", "dog", tmp_path, photos, "lora", steps=1, text_encoder=True)
    )
    with pytest.raises(MethodUnsupported, match="changes the text encoder"):
        MERGES["linear"].merge(model, [*both, encoder], LinearParams(), InProcessRun())
