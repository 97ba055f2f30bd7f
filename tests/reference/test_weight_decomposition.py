"""``W' = m (W + dW) / |W + dW|`` (Liu et al. 2024, equation 5), row by row in float64, and against peft's layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Conv2d as PeftConv2d
from peft.tuners.lora.layer import Linear as PeftLinear

from tests.reference.test_low_rank import ALPHA, RANK, change_of, layer, states_of
from worker.ml.streams import rng
from worker.ml.weight_decomposition import DecomposedChange, beside, row_lengths

KINDS = ["linear", "convolution"]


def decomposed(module: torch.nn.Module) -> DecomposedChange:
    weight = module.get_parameter("weight").detach()
    magnitude = 0.3 * torch.randn(len(weight), generator=rng(2, "magnitude", 0)).double()
    return DecomposedChange(change_of(module), magnitude.requires_grad_(), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_its_learned_length_and_the_direction_of_the_sum(kind: str) -> None:
    change = decomposed(layer(kind))
    found = (change.base + change.dense().detach()).numpy().reshape(6, -1)
    base = change.base.numpy().reshape(6, -1)
    summed = base + change.direction.dense().detach().numpy().reshape(6, -1)
    for row in range(6):
        length = np.sqrt((base[row] ** 2).sum()) + change.magnitude[row].item()
        expected = length * summed[row] / np.sqrt((summed[row] ** 2).sum())
        np.testing.assert_allclose(found[row], expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_the_layer_is_inside_its_weight(kind: str) -> None:
    """Outputs and gradients; the layer has a bias, which no length multiplies."""
    module, states = layer(kind), states_of(kind)
    ours, dense = decomposed(module), decomposed(module)
    plain = module(states)
    with beside({module: ours}):
        out = module(states)
    out.square().sum().backward()
    assert torch.equal(module(states), plain)
    fused = torch.func.functional_call(module, {"weight": dense.base + dense.dense()}, (states,))
    fused.square().sum().backward()
    np.testing.assert_allclose(out.detach().numpy(), fused.detach().numpy(), atol=1e-10)
    for mine, other in (
        (ours.magnitude, dense.magnitude),
        (ours.direction.down, dense.direction.down),
        (ours.direction.up, dense.direction.up),
    ):
        assert mine.grad is not None
        assert other.grad is not None
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_peft_makes_of_the_same_numbers(kind: str) -> None:
    """Outputs, and the gradients with the norm held constant (section 4.3). peft's magnitude is the length itself."""
    module, states = layer(kind), states_of(kind)
    change = decomposed(module)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, use_dora=True)  # type: ignore[arg-type]
    wrapper = PeftLinear if kind == "linear" else PeftConv2d
    theirs = wrapper(module, "default", config=config, r=RANK, lora_alpha=ALPHA).double()  # type: ignore[arg-type]
    magnitude = theirs.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(change.direction.down)
        theirs.lora_B["default"].weight.copy_(change.direction.up)
        magnitude.copy_((row_lengths(change.base) + change.magnitude).reshape(magnitude.shape))
    with beside({module: change}):
        ours = module(states)
    other = theirs(states)
    np.testing.assert_allclose(ours.detach().numpy(), other.detach().numpy(), atol=1e-10)
    ours.square().sum().backward()
    other.square().sum().backward()
    for mine, peft in (
        (change.magnitude, magnitude),
        (change.direction.down, theirs.lora_A["default"].weight),
        (change.direction.up, theirs.lora_B["default"].weight),
    ):
        assert mine.grad is not None
        np.testing.assert_allclose(mine.grad.numpy(), peft.grad.numpy().reshape(mine.shape), atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_learned_nothing_changes_to_the_bit(kind: str) -> None:
    module, states = layer(kind).float(), states_of(kind).float()
    change = decomposed(module)
    low = change.direction
    for tensor in (low.up, change.magnitude):
        tensor.detach().zero_()
    plain = module(states)
    single = DecomposedChange(
        type(low)(low.down.float(), low.up.float(), low.factor), change.magnitude.float(), change.base
    )
    assert not single.dense().any()
    with beside({module: single}):
        assert torch.equal(module(states), plain)


def test_a_row_without_length_stays_finite() -> None:
    module = layer("linear")
    with torch.no_grad():
        module.get_parameter("weight")[0] = 0.0
    change = decomposed(module)
    with torch.no_grad():
        change.direction.up[0] = 0.0
    assert change.dense().isfinite().all()
