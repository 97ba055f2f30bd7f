"""The sum of spectral shifts against numpy's own decomposition of every matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend.schemas.merges.svdiff_sum import SVDiffSumParams
from tests.ml.merging import made, taught
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import MethodUnsupported
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES, MergeInput
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun


def large(weights: ConceptWeights, factor: float) -> ConceptWeights:
    """With shifts large enough to bring singular values down to zero."""
    tensors = {
        name: tensor * factor if name.endswith(".shift") else tensor
        for name, tensor in weights.tensors.items()
    }
    return ConceptWeights(weights.manifest, tensors)


def test_singular_values_are_shifted_by_the_sum(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    one, other = (
        large(
            taught(model, token, "dog", tmp_path, photos, "svdiff", steps=3, seed=seed, learning_rate=0.05),
            8.0,
        )
        for seed, token in enumerate(("stark", "mimi"))
    )
    inputs = [MergeInput("a", one, 0.5), MergeInput("b", other)]
    result = MERGES["svdiff-sum"].merge(model, inputs, SVDiffSumParams(), InProcessRun()).weights
    assert (result.manifest.method, result.manifest.merge) == ("svdiff", "svdiff-sum")
    found = reader_of(result).deltas(model, result)
    died = 0
    for name, delta in found.items():
        weight = model.denoiser.get_parameter(f"{name}.weight").double().numpy()
        u, sigma, vt = np.linalg.svd(weight.reshape(len(weight), -1), full_matrices=False)
        shift = 0.5 * one.tensors[f"site.{name}.shift"].double().numpy()
        shift = shift + other.tensors[f"site.{name}.shift"].double().numpy()
        died += int((sigma + shift < 0).sum())
        slow = (u * (np.maximum(sigma + shift, 0.0) - sigma)) @ vt
        np.testing.assert_allclose(delta.numpy().reshape(len(weight), -1), slow, atol=2e-5)
    assert died


def test_other_methods_are_refused(model: DiffusionModel) -> None:
    both = [MergeInput(token, made(model, token, "dog")) for token in ("one", "two")]
    with pytest.raises(MethodUnsupported, match="takes SVDiff alone"):
        MERGES["svdiff-sum"].merge(model, both, SVDiffSumParams(), InProcessRun())
