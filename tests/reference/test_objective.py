"""The masked objective and the optimiser, against numpy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.ml.streams import rng
from worker.ml.training.losses import masked_squared_error, min_snr_weight, with_prior
from worker.ml.training.optimiser import NamedAdamW
from worker.ml.training.trainee import Group


def test_the_masked_loss_is_the_mean_over_valid_cells() -> None:
    """methods.md 4: normalised per image by the number of valid cells times channels, then lambda times the
    prior's.
    """
    draw = rng(0, "test", 0)
    prediction, target = torch.randn(2, 5, 4, 6, 6, generator=draw)
    masks = (torch.rand(5, 1, 6, 6, generator=draw) < 0.4).float()
    masks[3:] = 1.0
    prior = [False, False, False, True, True]
    rows = []
    for p, t, mask in zip(prediction.double().numpy(), target.double().numpy(), masks.numpy(), strict=True):
        total, cells = 0.0, 0
        for y in range(6):
            for x in range(6):
                if mask[0, y, x]:
                    cells += 1
                    total += sum((p[c, y, x] - t[c, y, x]) ** 2 for c in range(4))
        rows.append(total / (cells * 4))
    found = masked_squared_error(prediction, target, masks)
    np.testing.assert_allclose(found.numpy(), rows, rtol=1e-5)
    loss = with_prior(found, prior, 0.3)
    assert loss.prior is not None
    np.testing.assert_allclose(loss.photos.item(), np.mean(rows[:3]), rtol=1e-5)
    np.testing.assert_allclose(loss.total.item(), np.mean(rows[:3]) + 0.3 * np.mean(rows[3:]), rtol=1e-5)


def test_cells_outside_the_mask_do_not_count() -> None:
    """T12, exact: whatever the target is there."""
    prediction, target = torch.randn(2, 1, 4, 6, 6)
    mask = torch.zeros(1, 1, 6, 6)
    mask[:, :, 2:4, 1:5] = 1
    other = torch.where(mask.bool(), target, torch.randn_like(target) * 100)
    assert torch.equal(
        masked_squared_error(prediction, target, mask), masked_squared_error(prediction, other, mask)
    )
    full = torch.ones_like(mask)
    plain = (prediction - target).square().mean()
    torch.testing.assert_close(masked_squared_error(prediction, target, full)[0], plain)


@pytest.mark.parametrize(
    ("kind", "expected"), [("epsilon", [1.0, 1.0, 0.25]), ("v_prediction", [1 / 2, 5 / 6, 5 / 21])]
)
def test_min_snr(kind: str, expected: list[float]) -> None:
    found = min_snr_weight(torch.tensor([1.0, 5.0, 20.0]), 5.0, kind)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_adamw_is_the_published_algorithm_and_decays_the_change() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, two groups, a rate that is halved on the way, resumed in the
    middle.
    """
    draw = rng(0, "adamw", 0)
    change, word = torch.zeros(3, 2, requires_grad=True), torch.randn(2, generator=draw).requires_grad_()
    groups = (Group({"change": change}, 1e-2, 0.1), Group({"word": word}, 1e-1, 0.0))
    optimiser = NamedAdamW(groups)
    expected = {"change": np.zeros((3, 2)), "word": word.detach().double().numpy().copy()}
    first = {name: np.zeros_like(value) for name, value in expected.items()}
    second = {name: np.zeros_like(value) for name, value in expected.items()}
    for step in range(1, 8):
        scale = 1.0 if step < 5 else 0.5
        gradients = {"change": torch.randn(3, 2, generator=draw), "word": torch.randn(2, generator=draw)}
        change.grad, word.grad = gradients["change"].clone(), gradients["word"].clone()
        if step == 4:
            resumed = NamedAdamW(groups)
            resumed.restore(optimiser.state())
            optimiser = resumed
        optimiser.step(scale)
        for name, rate, decay in (("change", 1e-2, 0.1), ("word", 1e-1, 0.0)):
            g = gradients[name].double().numpy()
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            moved = (first[name] / (1 - 0.9**step)) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
            expected[name] = expected[name] - rate * scale * decay * expected[name] - rate * scale * moved
    np.testing.assert_allclose(change.detach().numpy(), expected["change"], atol=1e-6)
    np.testing.assert_allclose(word.detach().numpy(), expected["word"], atol=1e-5)
