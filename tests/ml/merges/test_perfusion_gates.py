"""Perfusion's words in one file: keys and values, and so pictures, are those of the separate files in one prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.schemas.generations import Gate
from backend.schemas.merges.perfusion_gates import PerfusionGatesParams
from tests.ml.merging import made, taught
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.errors import MethodUnsupported, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES, Merged, MergeInput
from worker.ml.methods import with_gate
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun

TEXTS = ("a photo of a <stark> and a <mimi> on the beach", "a <mimi> in snow", "photo of a red cat")


def merged(model: DiffusionModel, *inputs: MergeInput) -> Merged:
    return MERGES["perfusion-gates"].merge(model, list(inputs), PerfusionGatesParams(), InProcessRun())


def read(model: DiffusionModel, text: str, *scaled: tuple[ConceptWeights, float]) -> tuple[Tensor, ...]:
    edits = tuple((reader_of(weights).edit(model, weights), scale) for weights, scale in scaled)
    with torch.no_grad():
        kv = text_kv(model, [Prompt(text, edits)]).kv
    return kv.keys + kv.values


@pytest.fixture(scope="module")
def stark(
    model: DiffusionModel, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> ConceptWeights:
    """Its vector and key have moved; its gate is narrow."""
    return taught(
        model, "stark", "dog", tmp_path_factory.mktemp("s"), photos, "perfusion",
        steps=4, token_learning_rate=0.1, key_decay=0.5, draw_bias=0.6, draw_temperature=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["local", "global"])
def mimi(
    request: pytest.FixtureRequest,
    model: DiffusionModel,
    photos: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> ConceptWeights:
    """Another gate, and keys locked here or everywhere."""
    return taught(
        model, "mimi", "cat", tmp_path_factory.mktemp("m"), photos, "perfusion", seed=9,
        steps=4, token_learning_rate=0.1, key_decay=0.5, draw_bias=0.9, draw_temperature=0.3, locking=request.param,
    )  # fmt: skip


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 1.5), (1.0, 0.0)])
def test_the_file_reads_as_the_separate_files_do(
    model: DiffusionModel, stark: ConceptWeights, mimi: ConceptWeights, scales: tuple[float, float]
) -> None:
    result = merged(model, MergeInput("s", stark, scales[0]), MergeInput("m", mimi, scales[1]))
    assert result.report.verified, result.report.failures
    assert (result.report.residual or 0.0) < 1e-5
    for text in TEXTS:
        apart = read(model, text, (stark, scales[0]), (mimi, scales[1]))
        for ours, theirs in zip(read(model, text, (result.weights, 1.0)), apart, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-5)
    alone = read(model, TEXTS[0].replace("<mimi>", "cat"), (stark, scales[0]))
    both = read(model, TEXTS[0], (result.weights, 1.0))
    assert torch.allclose(alone[-1], both[-1], atol=1e-3) is (scales[1] == 0.0)


def test_one_concept_is_the_single_one_to_the_bit(model: DiffusionModel, stark: ConceptWeights) -> None:
    alone = merged(model, MergeInput("s", stark)).weights
    assert {**alone.tensors}.keys() == stark.tensors.keys()
    for text in (TEXTS[0].replace("<mimi>", "cat"), TEXTS[2]):
        for scale in (1.0, 0.4):
            pairs = zip(read(model, text, (alone, scale)), read(model, text, (stark, scale)), strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_merged_again_nothing_is_lost(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, stark: ConceptWeights, mimi: ConceptWeights
) -> None:
    """Scales multiply, renamed words are found, and the order of files does not matter."""
    bell = taught(model, "stark", "teapot", tmp_path, photos, "perfusion", steps=2, seed=5)
    first = merged(model, MergeInput("s", stark, 0.5), MergeInput("m", mimi)).weights
    second = merged(
        model, MergeInput("b", bell, 1.0, {"stark": "bell"}), MergeInput("sm", first, 0.8)
    ).weights
    assert [token.token for token in second.manifest.tokens] == ["bell", "stark", "mimi"]
    assert second.manifest.params["gates"]["stark"]["scale"] == pytest.approx(0.4)
    text = "a <stark> a <mimi> a"
    apart = read(model, f"{text} cat", (first, 0.8))
    with_bell = read(model, f"{text} <bell>", (second, 1.0))
    assert not torch.allclose(apart[-1], with_bell[-1], atol=1e-3)
    edits = [reader_of(each).edit(model, each) for each in (stark, mimi, bell)]
    named = replace(edits[2], tokens={"bell": edits[2].tokens["stark"]})
    with torch.no_grad():
        prompt = Prompt(f"{text} <bell>", ((edits[0], 0.4), (edits[1], 0.8), (named, 1.0)))
        kv = text_kv(model, [prompt]).kv
    for ours, theirs in zip(with_bell, kv.keys + kv.values, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=3e-5)


def test_gates_stay_and_may_be_another_one_when_pictures_are_drawn(
    model: DiffusionModel, stark: ConceptWeights, mimi: ConceptWeights
) -> None:
    weights = merged(model, MergeInput("s", stark), MergeInput("m", mimi)).weights
    value = model.cross_attention()[0].value.name
    gated = reader_of(weights).edit(model, weights).gated[value]
    assert (gated.bias.tolist(), gated.temperature.tolist()) == ([0.6, 0.9], [0.1, 0.3])
    other = with_gate(weights, Gate(bias=0.4, temperature=0.2))
    gated = reader_of(other).edit(model, other).gated[value]
    assert (gated.bias.tolist(), gated.temperature.tolist()) == ([0.4, 0.4], [0.2, 0.2])
    assert len(gated.keys) == 2


def test_a_gate_that_opens_at_another_word_is_told(model: DiffusionModel, stark: ConceptWeights) -> None:
    twin = MergeInput("t", stark, 1.0, {"stark": "twin"})
    notes = merged(model, MergeInput("s", stark), twin).report.notes
    told = [note for note in notes if "The gate of <stark> opens to 98% at <twin>" in note]
    assert len(told) == 1
    assert not any("opens" in note for note in merged(model, MergeInput("s", stark)).report.notes)


def test_what_it_cannot_take(model: DiffusionModel, stark: ConceptWeights) -> None:
    with pytest.raises(MethodUnsupported, match="takes Perfusion alone, and <other> was made with"):
        merged(model, MergeInput("s", stark), MergeInput("o", made(model, "other", "cat")))
    result = merged(model, MergeInput("s", stark)).weights
    params = {**result.manifest.params, "gates": {}}
    spoiled = result.manifest.model_copy(update={"params": params})
    with pytest.raises(WeightsInvalid, match="not Perfusion's"):
        reader_of(result).edit(model, ConceptWeights(spoiled, result.tensors))
