"""Gradient fusion on a tiny base: layers of text and picture, one concept and two, and what cannot be fused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.schemas.merges.gradient_fusion import GradientFusionParams
from tests.ml.merging import made, taught
from tests.ml.teaching import everything, same
from worker.ml.activations import recorded_inputs
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.errors import MethodUnsupported
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import installed
from worker.ml.merges import MERGES, Merged, MergeInput
from worker.ml.readers import reader_of
from worker.ml.run import Cancelled, InProcessRun
from worker.ml.sampling.engine import GenerationUnit, generate
from worker.ml.streams import rng


def merged(model: DiffusionModel, *inputs: MergeInput, **params: object) -> Merged:
    chosen = GradientFusionParams.model_validate({"captions": 200, "steps": 2, "hold": 0.0, **params})
    return MERGES["gradient-fusion"].merge(model, inputs, chosen, InProcessRun())


def deltas(model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
    return reader_of(weights).deltas(model, weights)


def lora(
    model: DiffusionModel, photos: list[Path], folder: Path, token: str, noun: str, **params: object
) -> ConceptWeights:
    return taught(model, token, noun, folder, photos, "lora", steps=3, learning_rate=0.1, **params)


@pytest.fixture(scope="module")
def two(
    model: DiffusionModel, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ConceptWeights, ConceptWeights]:
    """LoRAs of every attention layer."""
    folder = tmp_path_factory.mktemp("loras")
    own = lora(model, photos, folder, "stark", "dog", train_token=True, seed=1)
    return own, lora(model, photos, folder, "mimi", "cat", train_token=True, seed=2)


def test_the_inputs_of_layers_are_recorded_and_nothing_stays(model: DiffusionModel) -> None:
    layers = {
        site.name: site.module
        for site in model.sites()
        if ".attn1.to_out" in site.name or ".ff." in site.name
    }
    before, seen = everything(model), {name: torch.zeros(1, dtype=torch.float64) for name in layers}
    noisy = torch.randn(2, 4, 8, 8, generator=rng(0, "noisy", 0))
    handles = []
    for name, layer in layers.items():

        def add(_: object, arguments: tuple[Tensor, ...], name: str = name) -> None:
            rows = arguments[0].double().reshape(-1, arguments[0].shape[-1])
            seen[name] = seen[name] + rows.T @ rows

        handles.append(layer.register_forward_pre_hook(add))
    with recorded_inputs(layers) as triangles, torch.no_grad():
        for at in (900, 500, 100):
            text = text_kv(model, [Prompt("photo of a dog"), Prompt("")])
            model.predict(noisy, torch.tensor([at, at]), text)
    for handle in handles:
        handle.remove()
    for name, triangle in triangles.items():
        found = triangle.found()
        torch.testing.assert_close(found.T @ found, seen[name], rtol=1e-9, atol=1e-9)
    assert same(before, everything(model))
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_one_concept_is_itself(model: DiffusionModel, two: tuple[ConceptWeights, ConceptWeights]) -> None:
    """Layers of the picture have read every direction that there is: behind a norm without gains numbers have no mean,
    and what comes of cross-attention is mixtures of a few values. So predictions are the concept's own.
    """
    alone = merged(model, MergeInput("s", two[0], 0.7), ridge=1e-12, steps=8)
    assert alone.report.verified, alone.report.failures
    ready = {site.name for layer in model.cross_attention() for site in (layer.key, layer.value)}
    own, found = deltas(model, two[0]), deltas(model, alone.weights)
    assert found.keys() == own.keys()
    varied = {name for name in own.keys() - ready if ".attn2.to_out." not in name}
    assert len(varied) == 20
    for name in varied:
        change = 0.7 * own[name]
        if ".to_out." not in name:
            change = change - change.mean(dim=1, keepdim=True)
        assert float((found[name] - change).norm()) < 0.01 * float(change.norm())
    noisy, text = torch.randn(1, 4, 8, 8, generator=rng(1, "noisy", 0)), "photo of a <stark> dog"
    pictures = []
    for weights, scale in ((two[0], 0.7), (alone.weights, 1.0), (two[0], 0.0)):
        reader = reader_of(weights)
        installation = reader.installation(model, weights)
        assert installation is not None
        with torch.no_grad(), installed(model, ((installation, scale),)):
            prompt = Prompt(text, ((reader.edit(model, weights), scale),))
            pictures.append(model.predict(noisy, torch.tensor([500]), text_kv(model, [prompt])))
    size = float((pictures[0] - pictures[2]).norm())
    assert float((pictures[0] - pictures[1]).norm()) < 0.1 * size


def test_two_concepts_are_met_nearer_than_by_any_sum(
    model: DiffusionModel, two: tuple[ConceptWeights, ConceptWeights]
) -> None:
    """On what the layers of the picture read, which is recorded here once more by drawing."""
    both = merged(model, *(MergeInput(str(at), each) for at, each in enumerate(two)))
    assert both.report.verified, both.report.failures
    assert both.weights.manifest.side == "weights"
    layers = {
        site.name: site.module for site in model.sites() if ".attn1." in site.name or ".to_q" in site.name
    }
    defaults, missed = model.description.defaults, {"fused": 0.0, "sum": 0.0, "mean": 0.0, "nothing": 0.0}
    own, fused = [deltas(model, each) for each in two], deltas(model, both.weights)
    for weights, learned in zip(two, own, strict=True):
        token, noun = weights.manifest.tokens[0].token, weights.manifest.tokens[0].class_noun
        unit = GenerationUnit(
            0, f"photo of a <{token}> {noun}", "", 0, 2, defaults.guidance_scale, defaults.scheduler,
            model.description.resolution, model.description.resolution, ((weights, 1.0),),
        )  # fmt: skip
        with recorded_inputs(layers) as triangles:
            assert len(list(generate(model, [unit], InProcessRun()))) == 1
        for name, triangle in triangles.items():
            total = own[0][name] + own[1][name]
            ways = {"fused": fused[name], "sum": total, "mean": total / 2, "nothing": 0.0 * total}
            for way, change in ways.items():
                missed[way] += float(((change - learned[name]).double() @ triangle.found().T).square().sum())
    assert missed["fused"] < 0.9 * min(missed["sum"], missed["mean"], missed["nothing"])
    shares = [site.residual_of_change or 0.0 for site in both.report.sites if site.site in layers]
    assert min(shares) > 0.0
    assert max(shares) < 1.0
    assert any("met halfway" in note for note in both.report.notes)
    assert any("2 pictures were drawn" in note for note in both.report.notes)


def test_text_side_stays_text_side_and_small(model: DiffusionModel, tmp_path: Path) -> None:
    """Nothing is drawn; keys and values are stored as factors, a row for each of the words' states."""
    inputs = [
        MergeInput("s", made(model, "stark", "dog", seed=1), 0.5),
        MergeInput("m", made(model, "mimi", "cat", seed=2)),
    ]
    result = merged(model, *inputs)
    assert (result.weights.manifest.side, result.report.residual_of_change) == (
        "text",
        pytest.approx(0.0, abs=1e-3),
    )
    assert {frozenset(each) for each in result.weights.site_parts().values()} == {frozenset({"up", "down"})}
    result.weights.save(tmp_path / "w.safetensors")
    loaded = ConceptWeights.load(tmp_path / "w.safetensors")
    for each in inputs:
        token = each.weights.manifest.tokens[0]
        text = f"photo of a <{token.token}> {token.class_noun}"
        virtual = {token.token: range(model.vocabulary_size, model.vocabulary_size + 1)}
        here = model.token_ids(text, virtual).index(model.vocabulary_size)
        read = []
        for weights, scale in ((loaded, 1.0), (each.weights, each.scale)):
            prompt = Prompt(text, ((reader_of(weights).edit(model, weights), scale),))
            with torch.no_grad():
                read.append(text_kv(model, [prompt]).kv.values[0][0, here : here + 3])
        torch.testing.assert_close(*read, atol=2e-3, rtol=2e-3)


def test_captions_are_held_as_hard_as_asked(model: DiffusionModel) -> None:
    inputs = [
        MergeInput(token, made(model, token, noun)) for token, noun in (("stark", "dog"), ("mimi", "cat"))
    ]
    free, soft, hard = (merged(model, *inputs, hold=hold).report for hold in (0.0, 1.0, 1e6))
    drifts = [each.drift or 0.0 for each in (free, soft, hard)]
    missed = [each.residual_of_change or 0.0 for each in (free, soft, hard)]
    assert drifts[0] > 2 * drifts[1] > 20 * drifts[2]
    assert missed[0] < missed[1] < missed[2]
    assert (free.held_rows, free.captions) == (0, soft.captions)
    assert (soft.held_rows or 0) > (soft.captions or 0) > 100


def test_what_it_cannot_take(model: DiffusionModel, photos: list[Path], tmp_path: Path) -> None:
    word = MergeInput("w", made(model, "plain", "dog", method="textual-inversion"))
    convolved = lora(model, photos, tmp_path, "stark", "dog", convolution=True)
    with pytest.raises(MethodUnsupported, match="<stark> changes convolutions, norms or biases too"):
        merged(model, word, MergeInput("c", convolved))
    layered = taught(model, "mimi", "cat", tmp_path, photos, "textual-inversion", steps=1, per_layer=True)
    with pytest.raises(MethodUnsupported, match="another vector for every layer"):
        merged(model, word, MergeInput("l", layered))
    gated = taught(model, "one", "cat", tmp_path, photos, "perfusion", steps=1)
    with pytest.raises(MethodUnsupported, match="opens a gate"):
        merged(model, word, MergeInput("g", gated))


def test_a_cancel_while_pictures_are_drawn(
    model: DiffusionModel, two: tuple[ConceptWeights, ConceptWeights]
) -> None:
    run, before = InProcessRun(), everything(model)

    def stop(unit: str, _done: int, _total: int, _metrics: dict[str, float]) -> None:
        run.request = "cancel" if unit == "images" else None

    run.on_step = stop
    with pytest.raises(Cancelled):
        MERGES["gradient-fusion"].merge(
            model, [MergeInput("s", two[0])], GradientFusionParams(captions=200, steps=2), run
        )
    assert same(before, everything(model))
    assert not any(site.module._forward_pre_hooks for site in model.sites())
