"""Weight-change analysis on weights whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ml.teaching import stark, teach
from worker.ml.analysis import weight_change
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families.base import DiffusionModel


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
    assert set(found.mean_by_group.values()) == {0.0}
    assert all(change.energy_by_rank[0] == 0.0 for change in found.sites)


def test_a_known_factor_is_found_and_scales_linearly(model: DiffusionModel, weights: ConceptWeights) -> None:
    one = weight_change(model, with_deltas(model, weights, 0.1))
    two = weight_change(model, with_deltas(model, weights, 0.2))
    assert all(change.relative_change == pytest.approx(0.1, rel=1e-6) for change in one.sites)
    assert two.mean_by_group["cross-attention"] == pytest.approx(2 * one.mean_by_group["cross-attention"])
    assert one.mean_by_group["self-attention"] == one.mean_by_group["rest"] == 0.0
    assert one.token_change["stark"] == pytest.approx(1.0)


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
