"""Textual Inversion, eq. 2, against numpy and float64: what the word says, its gradient, its first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ml.teaching import prepare, stark
from tests.reference.clip_text import Array, arrays, encode
from worker.ml.conditioning import Conditioning, Prompt, TextEdit, TextKV, TokenRows, text_kv
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun
from worker.ml.streams import rng
from worker.ml.training.loop import Progress, advance

METHOD = "textual-inversion"
HEADS = 2


@pytest.fixture(scope="module")
def exact(tiny_folder: Path) -> DiffusionModel:
    return load_base(tiny_folder, dtype=torch.float64)


def keys_and_values(model: DiffusionModel, text: str, rows: Array) -> tuple[list[Array], list[Array]]:
    """``W c(y; v)`` of every layer, [T, inner] each; ``rows`` [layers, vectors, d]."""
    encoder = arrays(model.text_encoder)  # type: ignore[attr-defined]
    first, vectors = model.vocabulary_size, rows.shape[1]
    ids = model.token_ids(text, {"stark": range(first, first + vectors)})
    keys, values = [], []
    for layer, own in zip(model.cross_attention(), rows, strict=True):
        table = np.concatenate([encoder["embeddings.token_embedding.weight"], own])
        states = encode(encoder, table[ids], HEADS)
        keys.append(states @ layer.key.weight.double().numpy().T)
        values.append(states @ layer.value.weight.double().numpy().T)
    return keys, values


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("vectors", [1, 3])
def test_keys_and_values_are_those_of_the_encoder_with_the_rows_in_place(
    exact: DiffusionModel, per_layer: bool, vectors: int
) -> None:
    layers = len(exact.cross_attention())
    drawn = torch.randn(layers if per_layer else 1, vectors, 32, generator=rng(0, "rows", 0)).double()
    rows = TokenRows(torch.zeros_like(drawn), drawn) if per_layer else TokenRows(drawn[0] * 0, drawn[0])
    text = "photo of the <stark> on the beach"
    prompts = [Prompt(text, ((TextEdit({"stark": rows}, {}), 1.0),)), Prompt("a cat")]
    found = text_kv(exact, prompts).kv
    keys, values = keys_and_values(exact, text, np.broadcast_to(drawn.numpy(), (layers, vectors, 32)))
    for ours, expected in ((found.keys, keys), (found.values, values)):
        for tensor, array in zip(ours, expected, strict=True):
            np.testing.assert_allclose(tensor[0].numpy(), array, atol=1e-9)
    plain = text_kv(exact, [Prompt("a cat")]).kv
    for tensor, alone in zip(found.keys, plain.keys, strict=True):
        torch.testing.assert_close(tensor[1:], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("per_layer", [False, True])
def test_gradient_and_first_step(
    exact: DiffusionModel, photos: list[Path], tmp_path: Path, per_layer: bool
) -> None:
    """Central differences of ``mean (target - f(x_t, t, c(y; v)))^2`` with the numpy encoder in front; then
    AdamW's first step at rate ``learning_rate * batch_size``, undecayed and unclipped.
    """
    trainee = prepare(
        exact,
        [stark(photos)],
        tmp_path,
        method=METHOD,
        batch_size=2,
        learning_rate=0.003,
        per_layer=per_layer,
    )
    progress = Progress(trainee)
    (learned,) = progress.tensors.values()
    layers = len(exact.cross_attention())
    start = learned.detach().double().numpy().copy()
    rows = trainee.rows(0)
    assert rows.masks.all()
    x_t, t, target = exact.noised(rows.latents, rng(trainee.seed, "noise", 0))

    def loss(changed: Array) -> float:
        own = np.broadcast_to(changed, (layers, 1, 32))
        parts = [keys_and_values(exact, rows.prompts[place].text, own) for place in rows.prompt_of_row]
        stacked = [
            tuple(
                torch.from_numpy(np.stack(layer))
                for layer in zip(*(part[which] for part in parts), strict=True)
            )
            for which in (0, 1)
        ]
        with torch.no_grad():
            predicted = exact.predict(x_t, t, Conditioning(TextKV(*stacked)))
        return float(np.mean((target.double().numpy() - predicted.numpy()) ** 2))

    advance(exact, [progress], InProcessRun())
    assert learned.grad is not None
    gradient = learned.grad.double().numpy()
    for place in ([0, 0, 3], [layers - 1, 0, 17]) if per_layer else ([0, 3], [0, 17]):
        step = np.zeros_like(start)
        step[tuple(place)] = 1e-3
        slope = (loss(start + step) - loss(start - step)) / 2e-3
        np.testing.assert_allclose(gradient[tuple(place)], slope, rtol=1e-3, atol=1e-7)
    expected = start - 0.003 * 2 * gradient / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(learned.detach().numpy(), expected, atol=1e-6)
