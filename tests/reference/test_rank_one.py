"""The closed rank-one edit (methods.md 10.1) against numpy and float64: constraint, smallest change, target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ml.teaching import prepare, stark
from tests.reference.clip_text import Array
from worker.ml.conditioning import DenseChange, Prompt, TextEdit, text_kv
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.gates import projection
from worker.ml.low_rank import LowRankChange
from worker.ml.methods import METHODS
from worker.ml.methods.rank_one import target_changes
from worker.ml.run import InProcessRun
from worker.ml.streams import rng
from worker.ml.text_statistics import RIDGE, Covariance
from worker.ml.training.loop import Progress, advance
from worker.ml.training.trainee import Trainee

D, OUT, M = 12, 7, 60


def drawn(name: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=rng(0, name, 0)).double()


def second_moment(rows: Array, captions: int) -> Array:
    """``C`` by loops, ridge included."""
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for row in rows:
        for i in range(len(row)):
            for j in range(len(row)):
                total[i, j] += row[i] * row[j] / captions
    return total + RIDGE * np.trace(total) / len(total) * np.eye(len(total))


class Edit:
    """Our edit and what it was made of, as arrays. States lie on a spectrum over three decades."""

    def __init__(self, concepts: int, scale: float = 1.0) -> None:
        rows = drawn("states", M, D) @ torch.diag(torch.logspace(0, -3, D).double()) @ drawn("turn", D, D)
        covariance = Covariance.of(rows, 10)
        self.c = second_moment(rows.numpy(), 10)
        np.testing.assert_allclose(covariance.matrix.numpy(), self.c, rtol=1e-10, atol=1e-14)
        keys = rows[:concepts] + 0.1 * drawn("keys", concepts, D)
        self.w, self.i = drawn("weight", OUT, D).numpy(), keys.numpy()
        self.wanted = drawn("wanted", concepts, OUT).numpy()
        duals = projection(keys, Covariance(scale * covariance.matrix).solve(keys))
        change = torch.from_numpy(self.wanted - self.i @ self.w.T)
        self.d = LowRankChange(duals, change.T, 1.0).dense().numpy()


def test_it_is_the_published_formula() -> None:
    """``W + (o* - W i*) (C^-1 i*)^T / (i*^T C^-1 i*)``, and the two ways of reading a state."""
    edit = Edit(1)
    inverse, i, wanted = np.linalg.inv(edit.c), edit.i[0], edit.wanted[0]
    n2 = i @ inverse @ i
    np.testing.assert_allclose(edit.d, np.outer(wanted - edit.w @ i, inverse @ i) / n2, rtol=1e-6, atol=1e-9)
    for state in drawn("read", 5, D).numpy():
        similarity = i @ inverse @ state
        perpendicular = state - i * similarity / n2
        assert abs(i @ inverse @ perpendicular) < 1e-6 * abs(n2)
        expected = edit.w @ perpendicular + wanted * similarity / n2
        np.testing.assert_allclose((edit.w + edit.d) @ state, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("concepts", [1, 3])
def test_keys_are_read_as_their_targets_with_the_smallest_change(concepts: int) -> None:
    """T17: the optimum of ``min ||D C^1/2||_F`` with ``(W + D) i*_j = o*_j``, solved as one linear system (KKT); and
    no other feasible change is smaller.
    """
    edit = Edit(concepts)
    np.testing.assert_allclose((edit.w + edit.d) @ edit.i.T, edit.wanted.T, atol=1e-9)
    system = np.block([[edit.c, -edit.i.T], [edit.i, np.zeros((concepts, concepts))]])
    residual = edit.wanted - edit.i @ edit.w.T
    solved = np.linalg.solve(system, np.vstack([np.zeros((D, OUT)), residual]))[:D].T
    np.testing.assert_allclose(edit.d, solved, rtol=1e-5, atol=1e-8)
    assert np.linalg.matrix_rank(edit.d, tol=1e-8) == concepts
    root = np.linalg.cholesky(edit.c)
    free = np.eye(D) - np.linalg.pinv(edit.i) @ edit.i
    for step in range(5):
        other = edit.d + 0.1 * drawn(f"other/{step}", OUT, D).numpy() @ free
        np.testing.assert_allclose((edit.w + other) @ edit.i.T, edit.wanted.T, atol=1e-9)
        assert np.linalg.norm(other @ root) > np.linalg.norm(edit.d @ root)


def test_the_scale_of_the_covariance_cancels() -> None:
    np.testing.assert_allclose(Edit(2, scale=77.0).d, Edit(2).d, rtol=1e-7, atol=1e-10)


def test_targets_move_downhill_as_far_as_they_should() -> None:
    """For each concept over all sites together."""
    sums = {"a": drawn("g", 2, 3), "b": drawn("h", 2, 5)}
    outputs = {"a": drawn("o", 2, 3), "b": drawn("p", 2, 5)}
    found = {name: each.numpy() for name, each in target_changes(sums, outputs, 2.5).items()}
    for concept in range(2):
        gradient = np.concatenate([sums[name][concept].numpy() for name in sums])
        length = np.linalg.norm(np.concatenate([outputs[name][concept].numpy() for name in sums]))
        moved = np.concatenate([found[name][concept] for name in sums])
        np.testing.assert_allclose(moved, -2.5 * length * gradient / np.linalg.norm(gradient), rtol=1e-12)
    still = target_changes({name: 0 * each for name, each in sums.items()}, outputs, 2.5)
    assert not any(each.any() for each in still.values())


def test_the_target_is_the_mean_gradient_at_the_base_model(
    tiny_folder: Path, photos: list[Path], tmp_path: Path
) -> None:
    """Two steps: the weights' change is the sum of both gradients of the loss in ``o*``, by central differences."""
    model = load_base(tiny_folder, dtype=torch.float64)
    trainee = prepare(model, [stark(photos)], tmp_path, method="rank-one", steps=2, strength=3.0)
    progress = Progress(trainee)
    for _ in range(2):
        advance(model, [progress], InProcessRun())
    weights = trainee.result(2)
    method = METHODS["rank-one"]
    dual = weights.tensors["token.stark.dual"].double()
    words = method.edit(model, weights).tokens
    value = model.cross_attention()[1].value

    def loss(row: int, move: float) -> float:
        """Of both batches, with ``o*`` moved in one place: ``dW = move e_row u^T``."""
        outer = torch.zeros(value.weight.shape, dtype=torch.float64)
        outer[row] = move * dual[0]
        edit = TextEdit(words, {value.name: DenseChange(outer)})
        return sum(loss_with(model, trainee, step, edit) for step in range(2))

    slopes = np.array([(loss(row, 1e-3) - loss(row, -1e-3)) / 2e-3 for row in range(4)])
    found = weights.tensors[f"site.{value.name}.change"][0, :4].numpy()
    np.testing.assert_allclose(found / np.linalg.norm(found), -slopes / np.linalg.norm(slopes), atol=2e-3)


def loss_with(model: DiffusionModel, trainee: Trainee, step: int, edit: TextEdit) -> float:
    rows = trainee.rows(step)
    assert rows.masks.all()
    noisy, t, target = model.noised(rows.latents, rng(trainee.seed, "noise", step))
    texts = text_kv(model, [Prompt(prompt.text, ((edit, 1.0),)) for prompt in rows.prompts])
    with torch.no_grad():
        predicted = model.predict(noisy, t, texts.rows(rows.prompt_of_row))
    return float((predicted - target).square().mean())
