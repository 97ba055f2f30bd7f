"""Weight-change analysis on weights whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.schemas.weights import WeightsAnalysis
from tests.ml.teaching import stark, teach
from worker.ml.analysis import weight_change
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import replaced
from worker.ml.methods.dreambooth import denoiser_parameters, encoder_parameters, tensor_key


@pytest.fixture(scope="module")
def weights(
    model: DiffusionModel, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> ConceptWeights:
    return teach(model, [stark(photos)], tmp_path_factory.mktemp("prior"))


def with_deltas(model: DiffusionModel, weights: ConceptWeights, factor: float) -> ConceptWeights:
    """Every change is ``factor`` times the base's matrix; V* is twice its start."""
    base = {site.name: site.weight for site in model.sites()}
    held = dict(weights.tensors)
    for site in weights.site_parts():
        held[f"site.{site}.delta"] = factor * base[site]
    held["token.stark.learned"] = 2 * held["token.stark.start"]
    return replace(weights, tensors=held)


def test_no_change_is_zero(model: DiffusionModel, weights: ConceptWeights) -> None:
    found = weight_change(model, with_deltas(model, weights, 0.0))
    assert {change.relative_change for change in found.sites} == {0.0}
    assert {group for group, mean in found.mean_by_group.items() if mean} == {"tokens"}
    assert all(change.energy_by_rank[0] == 0.0 for change in found.sites)


def test_a_known_factor_is_found_and_scales_linearly(model: DiffusionModel, weights: ConceptWeights) -> None:
    one = weight_change(model, with_deltas(model, weights, 0.1))
    two = weight_change(model, with_deltas(model, weights, 0.2))
    assert all(change.relative_change == pytest.approx(0.1, rel=1e-6) for change in one.sites)
    assert two.mean_by_group["cross-attention"] == pytest.approx(2 * one.mean_by_group["cross-attention"])
    assert one.mean_by_group["self-attention"] == one.mean_by_group["rest"] == 0.0
    assert one.token_change["stark"] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def dreambooth(
    model: DiffusionModel, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> ConceptWeights:
    return teach(
        model, [stark(photos)], tmp_path_factory.mktemp("prior"), method="dreambooth", text_encoder=True,
        learning_rate=1e-4, text_learning_rate=1e-4, steps=2,
    )  # fmt: skip


def parameters_by_group(model: DiffusionModel) -> dict[str, dict[str, torch.Tensor]]:
    """{group: {name in the file: parameter}}, told apart by methods.md 3."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for path, parameter in denoiser_parameters(model).items():
        group = {"attn2": "cross-attention", "attn1": "self-attention"}
        name = next((group[part] for part in path.split(".") if part in group), "rest")
        found.setdefault(name, {})[tensor_key("site", path)] = parameter
    encoder = {tensor_key("encoder", path): each for path, each in encoder_parameters(model).items()}
    return found | {"text-encoder": encoder}


def test_a_dreambooth_concept_is_grouped_as_in_the_paper(
    model: DiffusionModel, dreambooth: ConceptWeights
) -> None:
    """Every parameter of the denoiser, and of the text encoder but its table, once; the words apart."""
    found = weight_change(model, dreambooth)
    groups = {each.group: each for each in found.groups}
    for name, parameters in parameters_by_group(model).items():
        assert groups[name].tensors + groups[name].left_out == len(parameters)  # type: ignore[index]
        assert groups[name].numbers == sum(each.numel() for each in parameters.values())  # type: ignore[index]
    assert (groups["tokens"].tensors, groups["tokens"].numbers) == (1, 32)
    assert found.mean_by_group == {each.group: each.mean for each in found.groups}
    assert all(each.mean > 0 and each.median > 0 and each.pooled_mean > 0 for each in found.groups)
    listed = {change.site: change for change in found.sites}
    assert len(listed) == len(found.sites)
    modules = {key.split(".", 1)[1].rpartition(".")[0] for key in dreambooth.tensors if "token" not in key}
    assert listed.keys() == modules
    assert listed["conv_norm_out"].shape == [32]
    assert listed["conv_norm_out"].singular_values == []
    assert listed["encoder.layers.0.mlp.fc1"].group == "text-encoder"
    assert len(listed["conv_in"].singular_values) == 32
    assert listed["conv_in"].bias_change


@pytest.mark.parametrize("perturbed", ["cross-attention", "self-attention", "rest", "text-encoder"])
def test_a_group_perturbed_by_a_known_factor_is_found_alone(
    model: DiffusionModel, dreambooth: ConceptWeights, perturbed: str
) -> None:
    held = dict(dreambooth.tensors)
    for group, parameters in parameters_by_group(model).items():
        factor = 0.25 if group == perturbed else 0.0
        held |= {name: factor * parameter.detach() for name, parameter in parameters.items()}
    held["token.stark.learned"] = held["token.stark.start"]
    found = weight_change(model, replace(dreambooth, tensors=held))
    for each in found.groups:
        expected = pytest.approx(0.25 if each.group == perturbed else 0.0, rel=1e-6)
        assert (each.mean, each.median, each.pooled_mean) == (expected, expected, expected)


def test_a_tensor_next_to_zero_is_left_out_and_counted(
    model: DiffusionModel, dreambooth: ConceptWeights
) -> None:
    before = {each.group: each for each in weight_change(model, dreambooth).groups}
    with replaced(model.denoiser, {"conv_in.bias": torch.full((32,), 1e-9)}):
        found = weight_change(model, dreambooth)
    after = {each.group: each for each in found.groups}
    assert after["rest"].left_out == before["rest"].left_out + 1
    assert after["rest"].tensors == before["rest"].tensors - 1
    [conv_in] = [change for change in found.sites if change.site == "conv_in"]
    assert conv_in.bias_change is None
    assert conv_in.pooled_change == pytest.approx(conv_in.relative_change)


def test_groups_hold_every_linear_and_conv_once(model: DiffusionModel) -> None:
    sites = model.sites()
    assert len({site.name for site in sites}) == len(sites)
    matrices = [p for p in model.denoiser.parameters() if p.ndim >= 2]
    assert sum(site.weight.numel() for site in sites) == sum(p.numel() for p in matrices)
    by_group = {site.group for site in sites}
    assert by_group == {"cross-attention", "self-attention", "rest"}


def test_the_report_is_the_schemas_and_largest_first(model: DiffusionModel, weights: ConceptWeights) -> None:
    found = weight_change(model, weights)
    changes = [change.relative_change for change in found.sites]
    assert len(changes) == 8
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] > 0
    for change in found.sites:
        assert change.shape == [64, 32]
        assert len(change.singular_values) == 32
        assert change.singular_values == sorted(change.singular_values, reverse=True)
        assert change.energy_by_rank[-1] == pytest.approx(1.0)
    assert torch.tensor(list(found.token_change.values())).gt(0).all()


def test_an_analysis_of_before_the_groups_is_still_read() -> None:
    """Analyses are stored with the weights: those of older versions have neither groups nor biases."""
    site = {"site": "conv_in", "group": "rest", "shape": [4, 4], "relative_change": 0.5,
            "singular_values": [1.0], "energy_by_rank": [1.0]}  # fmt: skip
    old = {"sites": [site], "mean_by_group": {"rest": 0.5}, "token_change": {"stark": 0.1}}
    found = WeightsAnalysis.model_validate(old)
    assert found.groups == []
    assert found.sites[0].bias_change is None
