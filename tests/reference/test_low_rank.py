"""``W' = W + (alpha / r) B A`` (Hu et al. 2022, section 4.1) against numpy, float64 and peft's layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Conv2d as PeftConv2d
from peft.tuners.lora.layer import Linear as PeftLinear

from worker.ml.low_rank import LowRankChange, beside, factor_shapes
from worker.ml.streams import rng

RANK, ALPHA = 3, 7.5


def layer(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = {
        "linear": lambda: torch.nn.Linear(10, 6),
        "convolution": lambda: torch.nn.Conv2d(4, 6, 3, stride=2, padding=1),
    }[kind]()
    return made.double().requires_grad_(False)


def change_of(module: torch.nn.Module) -> LowRankChange:
    down, up = factor_shapes(module.get_parameter("weight"), RANK)
    draw = rng(0, "factors", 0)
    return LowRankChange(
        torch.randn(down, generator=draw).double().requires_grad_(),
        torch.randn(up, generator=draw).double().requires_grad_(),
        ALPHA / RANK,
    )


def states_of(kind: str) -> torch.Tensor:
    shape = (5, 10) if kind == "linear" else (2, 4, 8, 8)
    return torch.randn(shape, generator=rng(1, "states", 0)).double()


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_change_is_the_product_of_its_factors(kind: str) -> None:
    """By loops over out, rank and in; a convolution counts as [out, in kh kw]."""
    module = layer(kind)
    change = change_of(module)
    down = change.down.detach().numpy().reshape(RANK, -1)
    up = change.up.detach().numpy().reshape(-1, RANK)
    expected = np.zeros((len(up), down.shape[1]))
    for o in range(len(up)):
        for i in range(down.shape[1]):
            expected[o, i] = ALPHA / RANK * sum(up[o, r] * down[r, i] for r in range(RANK))
    found = change.dense().detach()
    assert found.shape == module.get_parameter("weight").shape
    np.testing.assert_allclose(found.numpy().reshape(expected.shape), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_beside_the_layer_is_inside_its_weight(kind: str) -> None:
    """Fused equals unfused (float64, 1e-10), and so do gradients: ``dA = f B^T G``, ``dB = f G A^T`` with G that of
    the dense weight.
    """
    module, states = layer(kind), states_of(kind)
    change = change_of(module)
    plain = module(states)
    with beside({module: change}):
        out = module(states)
        out.square().sum().backward()
    assert torch.equal(module(states), plain)
    dense = (module.get_parameter("weight") + change.dense().detach()).requires_grad_()
    fused = torch.func.functional_call(module, {"weight": dense}, (states,))
    np.testing.assert_allclose(out.detach().numpy(), fused.detach().numpy(), atol=1e-10)
    fused.square().sum().backward()
    assert dense.grad is not None
    assert change.down.grad is not None
    assert change.up.grad is not None
    gradient = dense.grad.numpy().reshape(len(dense), -1)
    down, up = change.down.detach().numpy().reshape(RANK, -1), change.up.detach().numpy().reshape(-1, RANK)
    factor = ALPHA / RANK
    np.testing.assert_allclose(
        change.down.grad.numpy().reshape(down.shape), factor * up.T @ gradient, atol=1e-8
    )
    np.testing.assert_allclose(
        change.up.grad.numpy().reshape(up.shape), factor * gradient @ down.T, atol=1e-8
    )


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_it_is_what_peft_makes_of_the_same_factors(kind: str) -> None:
    module, states = layer(kind), states_of(kind)
    change = change_of(module)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0)  # type: ignore[arg-type]
    wrapper = PeftLinear if kind == "linear" else PeftConv2d
    theirs = wrapper(module, "default", config=config, r=RANK, lora_alpha=ALPHA).double()  # type: ignore[arg-type]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(change.down)
        theirs.lora_B["default"].weight.copy_(change.up)
        with beside({module: change}):
            ours = module(states)
        np.testing.assert_allclose(ours.numpy(), theirs(states).numpy(), atol=1e-10)
        delta = theirs.get_delta_weight("default")
        np.testing.assert_allclose(change.dense().numpy(), delta.numpy(), atol=1e-12)


def test_without_b_nothing_changes_to_the_bit() -> None:
    module, states = layer("linear"), states_of("linear")
    change = change_of(module)
    with torch.no_grad():
        change.up.zero_()
    with beside({module: change}):
        assert torch.equal(module(states), torch.nn.functional.linear(states, module.weight, module.bias))  # type: ignore[arg-type]
