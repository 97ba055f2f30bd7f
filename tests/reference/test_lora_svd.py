"""The cut sum of low-rank changes against numpy's SVD of the dense sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend.schemas.merges.lora_svd import LoraSVDParams
from backend.schemas.methods.lora import LoraParams
from tests.ml.merging import made, taught
from tests.reference.clip_text import Array
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import InputInvalid, MethodUnsupported
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES, Merged, MergeInput
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun


def merged(model: DiffusionModel, *inputs: MergeInput, **params: float) -> Merged:
    chosen = LoraSVDParams.model_validate(params)
    return MERGES["lora-svd"].merge(model, list(inputs), chosen, InProcessRun())


def dense_sum(*scaled: tuple[ConceptWeights, float]) -> dict[str, Array]:
    """{site: [o, in kh kw]}, number by number."""
    found: dict[str, Array] = {}
    for weights, scale in scaled:
        for name, parts in weights.site_parts().items():
            up, down = (parts[part].double().flatten(1).numpy() for part in ("up", "down"))
            change = scale * float(parts["alpha"]) / len(down) * np.einsum("or,ri->oi", up, down)
            found[name] = found.get(name, np.zeros_like(change)) + change
    return found


def flat_deltas(model: DiffusionModel, weights: ConceptWeights) -> dict[str, Array]:
    return {
        name: delta.flatten(1).double().numpy()
        for name, delta in reader_of(weights).deltas(model, weights).items()
    }


@pytest.fixture
def two(model: DiffusionModel, photos: list[Path], tmp_path: Path) -> tuple[ConceptWeights, ConceptWeights]:
    """LoRAs of attention and convolutions, rank 3 with alpha 1, and of keys and values, rank 2."""
    wide = taught(
        model, "stark", "dog", tmp_path, photos, "lora",
        steps=2, rank=3, alpha=1.0, learning_rate=0.1, convolution=True,
    )  # fmt: skip
    return wide, made(model, "mimi", "cat", method="lora")


def test_every_site_is_the_best_approximation_of_the_sum(
    model: DiffusionModel, two: tuple[ConceptWeights, ConceptWeights]
) -> None:
    inputs = [MergeInput("a", two[0], 0.5), MergeInput("b", two[1], -1.5)]
    result = merged(model, *inputs, rank=3, strength=0.8)
    manifest = result.weights.manifest
    assert (manifest.method, manifest.merge, manifest.side) == ("lora", "lora-svd", "weights")
    expected = dense_sum((two[0], 0.4), (two[1], -1.2))
    found = flat_deltas(model, result.weights)
    assert found.keys() == expected.keys()
    told = {site.site: site for site in result.report.sites}
    lost, whole = 0.0, 0.0
    for name, change in expected.items():
        u, sigma, vt = np.linalg.svd(change, full_matrices=False)
        np.testing.assert_allclose(found[name], (u[:, :3] * sigma[:3]) @ vt[:3], atol=2e-7 * sigma[0])
        assert told[name].rank == 3
        cut, energy = float((sigma[3:] ** 2).sum()), float((sigma**2).sum())
        assert told[name].discarded_energy == pytest.approx(cut / energy, abs=1e-9)
        lost, whole = lost + cut, whole + energy
    assert max(site.discarded_energy or 0.0 for site in result.report.sites) > 1e-3
    assert result.report.discarded_energy == pytest.approx(lost / whole, abs=1e-9)


def test_without_a_rank_nothing_is_cut_and_the_file_holds_factors(
    model: DiffusionModel, two: tuple[ConceptWeights, ConceptWeights]
) -> None:
    result = merged(model, MergeInput("a", two[0]), MergeInput("b", two[1]))
    expected = dense_sum((two[0], 1.0), (two[1], 1.0))
    for name, delta in flat_deltas(model, result.weights).items():
        np.testing.assert_allclose(delta, expected[name], atol=3e-7 * np.abs(expected[name]).max())
    parts = result.weights.site_parts()
    assert {frozenset(each) for each in parts.values()} == {frozenset({"down", "up", "alpha"})}
    assert {len(each["down"]) for each in parts.values()} == {3, 5}
    assert parts["down_blocks.0.resnets.0.conv1"]["down"].shape == (3, 32, 3, 3)
    assert result.report.discarded_energy == pytest.approx(0.0, abs=1e-12)


def test_a_concept_with_itself_needs_no_more_rank(model: DiffusionModel) -> None:
    one = made(model, "stark", "dog", method="lora")
    again = MergeInput("b", one, 0.25, {"stark": "other"})
    result = merged(model, MergeInput("a", one), again)
    assert {site.rank for site in result.report.sites} == {2}
    expected = dense_sum((one, 1.25))
    for name, delta in flat_deltas(model, result.weights).items():
        np.testing.assert_allclose(delta, expected[name], rtol=1e-4, atol=1e-7)
    assert [token.token for token in result.weights.manifest.tokens] == ["stark", "other"]


def test_text_side_stays_text_side_and_the_result_merges_again(model: DiffusionModel) -> None:
    one, other = (made(model, token, "dog", method="lora", seed=at) for at, token in enumerate("ab"))
    both = merged(model, MergeInput("a", one), MergeInput("b", other))
    assert both.weights.manifest.side == "text"
    third = made(model, "c", "cat", method="lora", seed=3)
    again = merged(model, MergeInput("ab", both.weights, 0.5), MergeInput("c", third))
    expected = dense_sum((one, 0.5), (other, 0.5), (third, 1.0))
    for name, delta in flat_deltas(model, again.weights).items():
        np.testing.assert_allclose(delta, expected[name], rtol=1e-4, atol=1e-6)


def test_what_it_cannot_take(model: DiffusionModel, photos: list[Path], tmp_path: Path) -> None:
    one = made(model, "stark", "dog", method="lora")
    matrices = MergeInput("m", made(model, "mimi", "cat"))
    with pytest.raises(MethodUnsupported, match="takes LoRA alone, and <mimi> was made with"):
        merged(model, MergeInput("a", one), matrices)
    encoder = taught(model, "enc", "dog", tmp_path, photos, "lora", steps=1, text_encoder=True)
    with pytest.raises(MethodUnsupported, match="changes the text encoder"):
        merged(model, MergeInput("a", one), MergeInput("e", encoder))
    dora = taught(model, "dora", "dog", tmp_path, photos, "lora", steps=1, use_dora=True)
    with pytest.raises(MethodUnsupported, match="learned with DoRA"):
        merged(model, MergeInput("a", one), MergeInput("d", dora))
    with pytest.raises(ValueError, match="never add without crosstalk"):
        LoraParams(use_dora=True, basis="orthogonal")
    with pytest.raises(InputInvalid, match="cancel one another"):
        merged(model, MergeInput("a", one), MergeInput("b", one, -1.0, {"stark": "other"}))
