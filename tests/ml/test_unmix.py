"""The unmix regulariser in a training: which rows pay for it, what it moves, and that it is nothing where it is off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.errors import Invalid
from backend.schemas.methods import CARDS
from backend.services.method_params import checked
from tests.conformance.test_joint_training import WITH_COLLAGES, Told, pair
from tests.ml.teaching import prepare, stark, teach
from tests.ml.test_training import request_at
from worker.ml.conditioning import Conditioning, text_kv
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun, Released
from worker.ml.streams import rng
from worker.ml.training.loop import Progress, advance, train
from worker.ml.training.trainee import Rows, Trainee
from worker.ml.training.unmix import placed_words, unmix_losses

ON: dict[str, Any] = {"collages": 0.6, "unmix_weight": 30.0, "batch_size": 4}
OFF: dict[str, Any] = {**ON, "unmix_weight": 0.0}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prior")


class Asked:
    """A base model that counts passes, and those that were asked for their queries."""

    def __init__(self, model: DiffusionModel) -> None:
        self._model = model
        self.passes, self.asked = 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        self.passes += 1
        self.asked += conditioning.queries is not None
        return self._model.predict(noisy, timesteps, conditioning)


def astray(model: DiffusionModel, rows: Rows) -> Tensor:
    """``L_unmix`` [R] of the collages of ``rows``, always with the same noise."""
    noisy, t, _ = model.noised(rows.latents, rng(0, "astray", 0))
    watching = replace(text_kv(model, rows.prompts).rows(rows.prompt_of_row), queries={})
    model.predict(noisy, t, watching)
    whole = slice(0, len(rows.latents))
    return unmix_losses(
        watching, (rows.latents.shape[-2], rows.latents.shape[-1]), placed_words(model, rows, whole)
    )


def first_collages(trainee: Trainee) -> Rows:
    """Of the first step that has any."""
    return next(rows for rows in map(trainee.rows, range(20)) if rows.sides)


# ---- which rows, which words


def test_collages_of_photos_name_their_sides(model: DiffusionModel, photos: list[Path], prior: Path) -> None:
    trainee = prepare(model, pair(photos), prior, **OFF)
    orders = set[tuple[str, str]]()
    for rows in map(trainee.rows, range(12)):
        of_photos = {row for row, token in enumerate(rows.tokens) if not token and not rows.prior[row]}
        assert rows.sides.keys() == of_photos
        for row, (left, right) in rows.sides.items():
            text = rows.prompts[rows.prompt_of_row[row]].text
            assert text.index(f"<{left}>") < text.index(f"<{right}>")
            orders.add((left, right))
    assert orders == {("stark", "wolf"), ("wolf", "stark")}


def test_words_are_the_placeholders_without_their_class(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    trainee = prepare(model, pair(photos), prior, **OFF)
    virtual = {token: range(10_000 + at, 10_001 + at) for at, token in enumerate(("stark", "wolf"))}
    orders = set[tuple[str, str]]()
    for rows in map(trainee.rows, range(8)):
        found = placed_words(model, rows, slice(1, 6))
        assert {1 + place for place in found} == {row for row in rows.sides if 1 <= row < 6}
        for place, words in found.items():
            sides = rows.sides[1 + place]
            ids = model.token_ids(rows.prompts[rows.prompt_of_row[1 + place]].text, virtual)
            assert [[ids[at] for at in word] for word in words] == [list(virtual[token]) for token in sides]
            orders.add(sides)
    assert len(orders) == 2


# ---- off is off


def test_off_nothing_is_asked_and_on_only_where_a_collage_is(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    off, on = Asked(model), Asked(model)
    without, trainee = (prepare(model, pair(photos), prior, **options) for options in (OFF, ON))
    train(off, [without], InProcessRun())
    assert (off.passes, off.asked) == (6, 0)
    sparse = replace(trainee, rows=lambda step: bare(trainee.rows(step)) if step % 2 else trainee.rows(step))
    train(on, [sparse], InProcessRun())
    expected = sum(bool(trainee.rows(step).sides) for step in (0, 2, 4))
    assert (on.passes, on.asked) == (6, expected)
    assert expected > 0


def bare(rows: Rows) -> Rows:
    """The same rows, which the regulariser takes for photos of one."""
    return replace(rows, sides={})


def test_a_weight_of_zero_and_no_collage_are_the_same_bytes(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    def learned(trainee: Trainee) -> dict[str, Tensor]:
        return dict(train(model, [trainee], InProcessRun())[0].tensors)

    on = prepare(model, pair(photos), prior, **ON)
    off = learned(prepare(model, pair(photos), prior, **OFF))
    spared = learned(replace(on, rows=lambda step: bare(on.rows(step))))
    moved = learned(prepare(model, pair(photos), prior, **ON))
    assert all(torch.equal(off[name], spared[name]) for name in off)
    assert not any(torch.equal(off[name], moved[name]) for name in off if name.endswith(".learned"))


# ---- what it adds


def test_it_is_told_by_itself_and_the_other_losses_stay(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """In the first step, before anything was learned; then in the sum of all terms of every step."""
    runs = Told(), Told()
    for run, options in zip(runs, (OFF, ON), strict=True):
        train(model, [prepare(model, pair(photos), prior, run=run, **options)], run)
    off, on = (run.metrics for run in runs)
    assert not any("unmix_loss" in metrics for metrics in off)
    trainee = prepare(model, pair(photos), prior, **ON)
    for step, metrics in enumerate(on):
        sides = len(trainee.rows(step).sides)
        assert ("unmix_loss" in metrics) is bool(sides)
        share = sides / ON["batch_size"]
        terms = metrics["photo_loss"] + metrics["prior_loss"]
        terms += ON["unmix_weight"] * share * metrics.get("unmix_loss", 0.0)
        assert metrics["loss"] == pytest.approx(terms, rel=1e-5)
    others = {name for name in off[0] if name != "loss"}
    assert {"photo_loss", "prior_loss"} <= others
    assert {name: on[0][name] for name in others} == {name: off[0][name] for name in others}
    assert on[0]["loss"] > off[0]["loss"]


def test_the_gradient_reaches_keys_values_and_words(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """All keys, and those values that a later layer's queries depend on: all but the last layer's."""
    trainee = prepare(model, pair(photos), prior, **OFF)
    astray(model, first_collages(trainee)).sum().backward()  # type: ignore[no-untyped-call]
    reached = {
        name: tensor.grad is not None and bool(tensor.grad.any())
        for name, tensor in trainee.tensors().items()
    }
    assert all(reached[f"site.{layer.key.name}.delta"] for layer in model.cross_attention())
    assert [
        layer.name for layer in model.cross_attention() if not reached[f"site.{layer.value.name}.delta"]
    ] == ["up_blocks.0.attentions.1.transformer_blocks.0.attn2"]
    assert reached["token.stark.learned"]
    assert reached["token.wolf.learned"]


def test_words_keep_to_their_halves_better_than_without_it(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """The same photos, noise and steps; measured on the collages of a step that was not trained on."""
    left = []
    for options in (OFF, ON):
        trainee = prepare(model, pair(photos), prior, steps=30, token_learning_rate=0.02, **options)
        unseen = trainee.rows(100)
        assert unseen.sides
        with torch.no_grad():
            before = astray(model, unseen)
        train(model, [trainee], InProcessRun())
        with torch.no_grad():
            left.append(astray(model, unseen) / before)
    off, on = left
    assert (on < 0.7 * off).all(), (on, off)
    assert (on < 0.7).all()


# ---- the loop's other ways


def test_halves_give_the_loss_and_the_gradients_of_the_whole(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    whole, halved = (Progress(prepare(model, pair(photos), prior, **ON)) for _ in range(2))
    halved.parts = 2
    told = 0
    for _ in range(3):
        [one], [other] = (advance(model, [progress], InProcessRun()) for progress in (whole, halved))
        torch.testing.assert_close(other.total, one.total, rtol=1e-5, atol=1e-6)
        assert (one.unmix is None) == (other.unmix is None)
        if one.unmix is not None:
            told += 1
            torch.testing.assert_close(other.unmix, one.unmix, rtol=1e-5, atol=1e-8)
        for name, tensor in whole.tensors.items():
            torch.testing.assert_close(halved.tensors[name].grad, tensor.grad, rtol=1e-3, atol=1e-6)
    assert told > 0


def test_two_trainings_in_one_batch_are_each_as_alone(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    def both() -> list[Progress]:
        kinds = [stark(photos)], pair(photos), pair(photos)
        options = {}, {**ON, "seed": 8}, ON
        return [
            Progress(prepare(model, each, prior, **given)) for each, given in zip(kinds, options, strict=True)
        ]

    together = advance(model, both(), InProcessRun())
    alone = [advance(model, [progress], InProcessRun())[0] for progress in both()]
    assert [loss.unmix is None for loss in alone] == [True, False, False]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.total, other.total, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.unmix, other.unmix, rtol=1e-5, atol=1e-8)


def test_interrupted_and_resumed_is_byte_equal(
    model: DiffusionModel, photos: list[Path], prior: Path, tmp_path: Path
) -> None:
    undisturbed = teach(model, pair(photos), prior, **ON)
    with pytest.raises(Released):
        teach(model, pair(photos), prior, run=request_at(InProcessRun(tmp_path), 4, "release"), **ON)
    resumed = teach(model, pair(photos), prior, run=InProcessRun(tmp_path), **ON)
    assert resumed.to_bytes() == undisturbed.to_bytes()


def test_activations_that_are_computed_again_give_the_same_gradients(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    gradients = []
    for recomputing in (False, True):
        trainee = prepare(
            model,
            pair(photos),
            prior,
            method="dreambooth",
            text_encoder=True,
            gradient_checkpointing=recomputing,
            max_grad_norm=100.0,
            **ON,
        )
        with trainee.installed():
            progress = Progress(trainee)
            [loss] = advance(model, [progress], InProcessRun())
        assert loss.unmix is not None
        gradients.append({name: tensor.grad for name, tensor in progress.tensors.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-8)


# ---- what is refused


def refusal(method: str, **params: Any) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as refused:
        checked(CARDS[method], None, "quick", params, 2)
    return [(each.pointer, each.detail) for each in refused.value.errors]


@pytest.mark.parametrize("method", WITH_COLLAGES)
def test_without_collages_it_is_refused_in_words(method: str) -> None:
    [(pointer, detail)] = refusal(method, unmix_weight=1.0)
    assert pointer == "/params/unmix_weight"
    assert "no collages" in detail
    [(pointer, _)] = refusal(method, unmix_weight=-0.1, collages=0.6)
    assert pointer == "/params/unmix_weight"
    assert (
        checked(CARDS[method], None, "quick", {"unmix_weight": 1.0, "collages": 0.6}, 2)["unmix_weight"] == 1
    )


def test_wrong_collages_are_told_once() -> None:
    assert [pointer for pointer, _ in refusal("lora", unmix_weight=1.0, collages=2.0)] == ["/params/collages"]


def test_a_category_taught_by_its_plain_name_has_no_word_to_keep_apart() -> None:
    [(pointer, detail)] = refusal("custom-diffusion", word="class-noun", collages=0.6, unmix_weight=1.0)
    assert pointer == "/params/unmix_weight"
    assert "plain names" in detail
