"""TIES and DARE against loops over numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.schemas.merges.dare import DareParams
from backend.schemas.merges.ties import TiesParams
from tests.ml.merging import made
from tests.reference.clip_text import Array
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES, MergeInput
from worker.ml.merges.dare import dropped
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun
from worker.ml.sign_election import elected_mean, trimmed
from worker.ml.streams import rng


def trimmed_by_loop(change: Array, density: float) -> Array:
    count = max(1, round(density * change.size))
    limit = sorted((abs(number) for number in change.flat), reverse=True)[count - 1]
    return np.vectorize(lambda number: number if abs(number) >= limit else 0.0)(change)


def elected_by_loop(changes: list[Array]) -> Array:
    out = np.zeros(changes[0].shape)
    for place in np.ndindex(out.shape):
        numbers = [float(change[place]) for change in changes if change[place] != 0]
        up, down = sum(n for n in numbers if n > 0), -sum(n for n in numbers if n < 0)
        agreeing = [n for n in numbers if (n > 0) == (up > down)] if up != down else []
        out[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return out


def test_trim_elect_and_disjoint_mean() -> None:
    changes = [torch.randn(6, 5, generator=rng(at, "ties", 0)).double() for at in range(3)]
    for density in (0.1, 0.5, 1.0):
        ours = elected_mean([trimmed(each, density) for each in changes]).numpy()
        slow = elected_by_loop([trimmed_by_loop(each.numpy(), density) for each in changes])
        np.testing.assert_allclose(ours, slow, atol=1e-12)
    hand = [torch.tensor([3.0, -1.0, 0.0, 2.0]), torch.tensor([-1.0, -3.0, 0.0, 0.0])]
    assert elected_mean(hand).tolist() == [3.0, -2.0, 0.0, 2.0]


def test_ties_merges_every_site_so(model: DiffusionModel) -> None:
    weights = [made(model, "stark", "dog", seed=1), made(model, "mimi", "cat", seed=2)]
    inputs = [MergeInput("a", weights[0], 0.5), MergeInput("b", weights[1])]
    params = TiesParams(density=0.3, strength=1.5)
    result = MERGES["ties"].merge(model, inputs, params, InProcessRun()).weights
    found = reader_of(result).deltas(model, result)
    for name, delta in found.items():
        scaled = [
            scale * each.tensors[f"site.{name}.delta"].double().numpy()
            for each, scale in zip(weights, (0.5, 1.0), strict=True)
        ]
        slow = 1.5 * elected_by_loop([trimmed_by_loop(each, 0.3) for each in scaled])
        np.testing.assert_allclose(delta.numpy(), slow, atol=1e-7)


def test_dare_drops_at_its_rate_and_keeps_the_mean(model: DiffusionModel) -> None:
    change = torch.randn(400, 500, generator=rng(0, "dare", 0)).double()
    thinned = dropped(change, 0.9, rng(1, "dare", 0))
    kept = thinned != 0
    assert float(kept.double().mean()) == pytest.approx(0.1, abs=0.005)
    torch.testing.assert_close(thinned[kept], change[kept] / 0.1)
    weights = [made(model, "stark", "dog", seed=1), made(model, "mimi", "cat", seed=2)]
    inputs = [MergeInput(str(at), each) for at, each in enumerate(weights)]

    def merged(**params: object) -> dict[str, torch.Tensor]:
        result = (
            MERGES["dare"].merge(model, inputs, DareParams.model_validate(params), InProcessRun()).weights
        )
        return dict(reader_of(result).deltas(model, result))

    one, same, other = merged(drop=0.5), merged(drop=0.5), merged(drop=0.5, seed=1)
    name = min(one)
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    whole = sum(each.tensors[f"site.{name}.delta"] for each in weights)
    assert isinstance(whole, torch.Tensor)
    torch.testing.assert_close(merged(drop=0.0)[name], whole, atol=1e-7, rtol=1e-5)
    doubled = {float(n) for n in (one[name] / whole).flatten() if abs(float(n) - 2.0) < 1e-4}
    assert doubled
    voted = merged(drop=0.0, then="ties")[name].numpy()
    slow = elected_by_loop([each.tensors[f"site.{name}.delta"].double().numpy() for each in weights])
    np.testing.assert_allclose(voted, slow, atol=1e-7)
