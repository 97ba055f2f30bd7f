"""Perfusion's gated reading of text states (methods.md 10.2) against numpy and float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.reference.clip_text import Array
from worker.ml.gates import GatedChange, gated_change
from worker.ml.streams import rng

D, OUT, T = 10, 6, 8
BIAS, TEMPERATURE = 0.75, 0.1


def drawn(name: str, *shape: int) -> Array:
    found: Array = torch.randn(shape, generator=rng(0, name, 0)).double().numpy()
    return found


W = drawn("weight", OUT, D)
_ROWS = drawn("states", 40, D)
C = _ROWS.T @ _ROWS / 40


def concepts(count: int, **changes: object) -> GatedChange:
    keys = drawn("keys", count, D)
    parts = {
        "keys": keys,
        "duals": np.linalg.solve(C, keys.T).T,
        "targets": drawn("targets", count, OUT),
        **changes,
    }
    return GatedChange(
        **{name: torch.from_numpy(np.asarray(part)) for name, part in parts.items()},
        bias=each(count, BIAS),
        temperature=each(count, TEMPERATURE),
        scales=each(count, 1.0),
    )


def each(count: int, number: float) -> torch.Tensor:
    return torch.full((count,), number, dtype=torch.float64)


def read(change: GatedChange, states: Array, scale: float = 1.0) -> Array:
    """``h(e)`` as the program has it: W e and the change."""
    e = torch.from_numpy(states)
    changed: Array = (
        e @ torch.from_numpy(W).T + gated_change(e, torch.from_numpy(W), [(change, scale)])
    ).numpy()
    return changed


def slowly(change: GatedChange, state: Array) -> Array:
    """``W (e - P e) + sum_j sigmoid((sim_j / n2_j - beta) / tau) o*_j`` with ``P = I^T (I C^-1 I^T)^-1 I C^-1``."""
    keys, inverse = change.keys.numpy(), np.linalg.inv(C)
    span = keys.T @ np.linalg.inv(keys @ inverse @ keys.T) @ keys @ inverse
    out: Array = W @ (state - span @ state)
    gates = zip(change.bias.tolist(), change.temperature.tolist(), strict=True)
    for key, target, (bias, temperature) in zip(keys, change.targets.numpy(), gates, strict=True):
        nearness = (key @ inverse @ state) / (key @ inverse @ key)
        out = out + target / (1.0 + np.exp(-(nearness - bias) / temperature))
    return out


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_state_is_read_as_the_paper_says(count: int) -> None:
    change, states = concepts(count), np.concatenate([drawn("read", T, D), drawn("keys", count, D)])
    expected = np.stack([slowly(change, state) for state in states])
    np.testing.assert_allclose(read(change, states), expected, atol=1e-9)


def test_the_gate_at_the_key_and_away_from_it() -> None:
    """0.92 of the target for the word itself, 5.5e-4 for a state that has nothing of it, which is else read as ever."""
    change = concepts(1)
    key = change.keys.numpy()
    away = drawn("read", T, D)
    away = away - (away @ change.duals.numpy().T) / (key @ change.duals.numpy().T) * key
    gates = change.gates(torch.from_numpy(np.concatenate([key, away]))).numpy()[:, 0]
    np.testing.assert_allclose(gates[0], 1 / (1 + np.exp(-(1 - BIAS) / TEMPERATURE)), rtol=1e-12)
    assert round(float(gates[0]), 2) == 0.92
    np.testing.assert_allclose(gates[1:], 5.5e-4, rtol=0.01)
    expected = away @ W.T + gates[1:, None] * change.targets.numpy()
    np.testing.assert_allclose(read(change, away), expected, atol=1e-10)


def test_a_half_similar_state_keeps_its_gate_shut_and_loses_its_part_along_the_key() -> None:
    change = concepts(1)
    state = 0.5 * change.keys.numpy()
    assert float(change.gates(torch.from_numpy(state))) < 0.08
    np.testing.assert_allclose(read(change, state), change.gates(torch.from_numpy(state)) * change.targets)


def test_a_sharp_gate_with_the_words_own_value_is_the_matrix_itself() -> None:
    """tau -> 0, beta < 1, ``o* = W i*``: T1."""
    keys = drawn("keys", 1, D)
    change = concepts(1, targets=keys @ W.T)
    sharp = replace(change, temperature=each(1, 1e-6))
    np.testing.assert_allclose(read(sharp, keys), keys @ W.T, atol=1e-10)


def test_the_scale_of_the_covariance_cancels() -> None:
    change = concepts(2)
    scaled = concepts(2, duals=change.duals.numpy() / 1000)
    states = drawn("read", T, D)
    np.testing.assert_allclose(read(scaled, states), read(change, states), atol=1e-9)


def test_several_changes_are_one_joint_change_and_their_order_does_not_matter() -> None:
    """T17: the projection of the stacked keys, also as QR of the whitened keys."""
    both = concepts(2)
    one, two = (GatedChange(**{name: part[n : n + 1] for name, part in vars(both).items()}) for n in (0, 1))
    e, w = torch.from_numpy(drawn("read", T, D)), torch.from_numpy(W)
    joint = gated_change(e, w, [(both, 1.0)])
    for order in ([one, two], [two, one]):
        torch.testing.assert_close(gated_change(e, w, [(each, 1.0) for each in order]), joint)
    apart = gated_change(e, w, [(one, 1.0)]) + gated_change(e, w, [(two, 1.0)])
    assert (apart - joint).abs().max() > 1e-2  # subtracting each by itself is wrong where keys are alike
    root = np.linalg.cholesky(np.linalg.inv(C))
    q, _ = np.linalg.qr(root.T @ both.keys.numpy().T)
    taken = np.linalg.solve(root.T, q @ (q.T @ root.T @ e.numpy().T)).T
    gates = both.gates(e).numpy() @ both.targets.numpy()
    np.testing.assert_allclose(joint.numpy(), gates - taken @ W.T, atol=1e-9)


def test_one_key_twice_shares_its_direction_and_nothing_breaks() -> None:
    change, state = concepts(1), drawn("read", T, D)
    e, w = torch.from_numpy(state), torch.from_numpy(W)
    once = gated_change(e, w, [(change, 1.0)])
    twice = gated_change(e, w, [(change, 1.0), (change, 1.0)])
    put = change.gates(e) @ change.targets
    torch.testing.assert_close(twice - put, once)


def test_every_concept_has_a_gate_and_a_scale_of_its_own() -> None:
    change = replace(concepts(2), bias=torch.tensor([0.6, 0.9]), temperature=torch.tensor([0.5, 0.2]))
    states = np.concatenate([drawn("read", T, D), drawn("keys", 2, D)])
    expected = np.stack([slowly(change, state) for state in states])
    np.testing.assert_allclose(read(change, states), expected, atol=1e-6)
    e, w = torch.from_numpy(states), torch.from_numpy(W)
    one, two = (GatedChange(**{name: part[n : n + 1] for name, part in vars(change).items()}) for n in (0, 1))
    apart = gated_change(e, w, [(one, 0.3), (two, 0.8)])
    scaled = replace(change, scales=torch.tensor([0.6, 1.6], dtype=torch.float64))
    torch.testing.assert_close(gated_change(e, w, [(scaled, 0.5)]), apart)


def test_a_scale_multiplies_the_change() -> None:
    change, states = concepts(2), drawn("read", T, D)
    plain = states @ W.T
    np.testing.assert_allclose(
        read(change, states, 0.3) - plain, 0.3 * (read(change, states) - plain), atol=1e-12
    )
