"""``W' = U diag(relu(sigma + delta)) V^T`` (Han et al. 2023, section 3.2) against numpy, float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ml.teaching import prepare, stark
from worker.ml.conditioning import text_kv
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun
from worker.ml.spectra import Spectrum, decomposed
from worker.ml.spectral_shifts import GainChange, SpectralChange, beside, few_rows, in_place
from worker.ml.streams import rng
from worker.ml.training.loop import Progress, advance


def layer(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = {
        "linear": lambda: torch.nn.Linear(10, 6),
        "convolution": lambda: torch.nn.Conv2d(4, 6, 3, stride=2, padding=1),
    }[kind]()
    return made.double().requires_grad_(False)


def change_of(module: torch.nn.Module, size: float = 0.2) -> SpectralChange:
    weight = module.get_parameter("weight")
    found = decomposed(weight)
    spectrum = Spectrum(*(each.double() for each in vars(found).values()))
    delta = size * torch.randn(6, generator=rng(0, "delta", 0)).double()
    return SpectralChange(spectrum, delta.requires_grad_(), tuple(weight.shape))


def states_of(kind: str, rows: int) -> torch.Tensor:
    shape = (rows, 10) if kind == "linear" else (rows, 4, 8, 8)
    return torch.randn(shape, generator=rng(1, "states", 0)).double()


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_shifted_weight(kind: str) -> None:
    """Rebuilt from numpy's own decomposition, a convolution as [out, in kh kw]; one value dies."""
    module = layer(kind)
    change = change_of(module)
    with torch.no_grad():
        change.delta[2] = -10 * change.spectrum.values[2]
    weight = module.get_parameter("weight").numpy()
    left, values, right = np.linalg.svd(weight.reshape(6, -1), full_matrices=False)
    new = np.maximum(values + change.delta.detach().numpy(), 0.0)
    assert new[2] == 0.0
    expected = (left * new) @ right
    found = weight + change.dense().detach().numpy()
    np.testing.assert_allclose(found.reshape(6, -1), expected, atol=1e-6)
    rebuilt = np.linalg.svd(found.reshape(6, -1), compute_uv=False)
    np.testing.assert_allclose(rebuilt, np.sort(new)[::-1], atol=1e-6)


def test_one_shifted_value_changes_the_weight_by_a_matrix_of_rank_one() -> None:
    change = change_of(layer("convolution"), size=0.0)
    with torch.no_grad():
        change.delta[1] = 0.3
    values = np.linalg.svd(change.dense().detach().numpy().reshape(6, -1), compute_uv=False)
    np.testing.assert_allclose(values, [0.3, 0, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(change.singular_values().numpy(), values, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("rows", [1, 50])
def test_both_ways_of_a_layer_are_the_shifted_weight_with_its_gradient(kind: str, rows: int) -> None:
    """Few rows: beside the weight; many: inside. Outputs, and ``d delta_j = u_j^T G v_j`` with G of the weight."""
    module, states = layer(kind), states_of(kind, rows)
    if kind == "convolution" and rows == 1:
        states = states[:, :, :2, :2]  # one place of output
    change = change_of(module)
    assert few_rows(module, states, change.shape) == (rows == 1)
    plain = module(states)
    with in_place({module: change}):
        out = module(states)
        out.square().sum().backward()
    assert torch.equal(module(states), plain)
    dense = (module.get_parameter("weight") + change.dense().detach()).requires_grad_()
    expected = torch.func.functional_call(module, {"weight": dense}, (states,))
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), atol=1e-10)
    expected.square().sum().backward()
    assert dense.grad is not None
    assert change.delta.grad is not None
    left, right = change.spectrum.left.numpy(), change.spectrum.right.numpy()
    slopes = [
        left[:, j] @ dense.grad.numpy().reshape(6, -1) @ right[j] if (change.growth()[j] != 0) else 0.0
        for j in range(6)
    ]
    np.testing.assert_allclose(change.delta.grad.numpy(), slopes, atol=1e-9)
    added = beside(change, module, states).detach()
    np.testing.assert_allclose((plain + added).numpy(), expected.detach().numpy(), atol=1e-10)


@pytest.mark.parametrize("rows", [1, 50])
def test_no_shift_is_the_layer_to_the_bit(rows: int) -> None:
    module, states = layer("linear"), states_of("linear", rows)
    change = change_of(module, size=0.0)
    with torch.no_grad(), in_place({module: change}):
        assert torch.equal(module(states), torch.nn.functional.linear(states, module.weight, module.bias))  # type: ignore[arg-type]


def test_gains_are_shifted_one_by_one_and_keep_their_sign() -> None:
    gain = torch.tensor([1.5, -0.5, 0.0, -2.0, 0.25])
    delta = torch.tensor([-0.5, 0.25, 0.5, -5.0, 0.0])
    expected = np.sign([1, -1, 1, -1, 1]) * np.maximum(np.abs(gain.numpy()) + delta.numpy(), 0.0)
    np.testing.assert_allclose((gain + GainChange(gain, delta).dense()).numpy(), expected, atol=1e-7)


PLACES = {
    "site.conv_in.shift": 3,
    "site.conv_norm_out.shift": 5,
    "site.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.shift": 11,
    "site.up_blocks.1.resnets.0.conv1.shift": 0,
    "encoder.encoder.layers.0.mlp.fc1.shift": 8,
    "encoder.final_layer_norm.shift": 2,
}


def test_gradient_and_first_step(tiny_folder: Path, photos: list[Path], tmp_path: Path) -> None:
    """Central differences of the loss of a whole step, photos + lambda prior, in the shifts of every kind of layer."""
    exact: DiffusionModel = load_base(tiny_folder, dtype=torch.float64)
    trainee = prepare(
        exact, [stark(photos)], tmp_path, method="svdiff", text_encoder=True, prior_weight=0.7,
        learning_rate=1e-3, gain_learning_rate=1e-3, text_learning_rate=1e-3, max_grad_norm=100.0,
    )  # fmt: skip
    rows = trainee.rows(0)
    x_t, t, target = exact.noised(rows.latents, rng(trainee.seed, "noise", 0))
    prior = np.array(rows.prior)

    def loss() -> float:
        with torch.no_grad():
            conditioning = text_kv(exact, rows.prompts).rows(rows.prompt_of_row)
            predicted = exact.predict(x_t, t, conditioning)
        squared = ((target.double().numpy() - predicted.numpy()) ** 2).reshape(len(prior), -1).mean(axis=1)
        return float(squared[~prior].mean() + 0.7 * squared[prior].mean())

    with trainee.installed():
        progress = Progress(trainee)
        slopes = {}
        for name, place in PLACES.items():
            tensor, values = progress.tensors[name], []
            for step in (1e-3, -1e-3):
                with torch.no_grad():
                    tensor[place] = step
                values.append(loss())
            with torch.no_grad():
                tensor[place] = 0.0
            slopes[name] = (values[0] - values[1]) / 2e-3
        advance(exact, [progress], InProcessRun())
    for name, place in PLACES.items():
        gradient = progress.tensors[name].grad
        assert gradient is not None
        np.testing.assert_allclose(float(gradient[place]), slopes[name], rtol=5e-3, atol=1e-6)
        expected = -1e-3 * slopes[name] / (abs(slopes[name]) + 1e-8)
        np.testing.assert_allclose(float(progress.tensors[name][place].detach()), expected, atol=2e-6)
