"""The loop: requests, resuming, recovery, several trainees in one batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ml.teaching import TINY, prepare, stark, teach
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import TrainingDiverged
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import ConceptExamples
from worker.ml.run import Cancelled, InProcessRun, Released
from worker.ml.streams import rng
from worker.ml.training.dataset import deal
from worker.ml.training.guard import EXPLOSION_STEPS, SKIPS_IN_A_ROW, LossWatch
from worker.ml.training.loop import Progress, advance, train
from worker.ml.training.trainee import Rows, Trainee


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prior")


@pytest.fixture(scope="module")
def undisturbed(model: DiffusionModel, photos: list[Path], prior: Path) -> bytes:
    return teach(model, [stark(photos)], prior).to_bytes()


def request_at(run: InProcessRun, step: int, request: str) -> InProcessRun:
    """``run`` asks for ``request`` after optimiser step ``step``."""

    def on_step(unit: str, done: int, total: int, metrics: dict[str, float]) -> None:
        if unit == "train" and done == step:
            run.request = request  # type: ignore[assignment]

    run.on_step = on_step
    return run


def test_draws_are_functions_of_seed_stream_and_step() -> None:
    def draw(*key: object) -> list[float]:
        return torch.randn(4, generator=rng(*key)).tolist()  # type: ignore[arg-type]

    assert draw(1, "noise", 2) == draw(1, "noise", 2)
    assert (
        len(
            {tuple(draw(*key)) for key in [(1, "noise", 2), (2, "noise", 2), (1, "rows", 2), (1, "noise", 3)]}
        )
        == 4
    )


def test_a_deck_deals_every_card_equally_often_from_any_place() -> None:
    dealt = deal("xxyxx", 3, "deck", first=0, count=20, together=2)
    assert all(sorted(dealt[i : i + 5]) == list(range(5)) for i in range(0, 20, 5))
    assert deal("xxyxx", 3, "deck", first=7, count=6, together=2) == dealt[7:13]
    assert dealt[:5] != dealt[5:10]


@pytest.mark.parametrize("stops", [[1], [3], [5], [2, 4]])
def test_interrupted_and_resumed_is_byte_equal(
    model: DiffusionModel,
    photos: list[Path],
    prior: Path,
    undisturbed: bytes,
    stops: list[int],
    tmp_path: Path,
) -> None:
    for stop in stops:
        with pytest.raises(Released):
            teach(model, [stark(photos)], prior, run=request_at(InProcessRun(tmp_path), stop, "release"))
    last = InProcessRun(tmp_path)
    weights = teach(model, [stark(photos)], prior, run=last)
    assert weights.to_bytes() == undisturbed
    assert [row["step"] for row in last.history["train"]] == list(range(stops[-1] + 1, TINY["steps"] + 1))


def test_killed_between_checkpoints_is_byte_equal(
    model: DiffusionModel, photos: list[Path], prior: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    """A checkpoint after every step, the newest one damaged as a power cut may leave it."""
    with pytest.raises(Cancelled):
        teach(
            model,
            [stark(photos)],
            prior,
            run=request_at(InProcessRun(tmp_path, checkpoint_s=0.0), 4, "cancel"),
        )
    kept = sorted(path.name for path in (tmp_path / "train").iterdir())
    (tmp_path / "train" / kept[-1] / "tensors.safetensors").write_bytes(b"")
    run = InProcessRun(tmp_path)
    assert teach(model, [stark(photos)], prior, run=run).to_bytes() == undisturbed
    assert run.notes[0][0] == "checkpoint_discarded"


def test_a_checkpoint_of_another_training_is_not_used(
    model: DiffusionModel, photos: list[Path], prior: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    with pytest.raises(Released):
        teach(model, [stark(photos)], prior, seed=8, run=request_at(InProcessRun(tmp_path), 3, "release"))
    run = InProcessRun(tmp_path)
    assert teach(model, [stark(photos)], prior, run=run).to_bytes() == undisturbed
    assert run.notes[0][0] == "checkpoint_discarded"


def test_cancel_acts_within_one_step(model: DiffusionModel, photos: list[Path], prior: Path) -> None:
    run = request_at(InProcessRun(), 2, "cancel")
    with pytest.raises(Cancelled):
        teach(model, [stark(photos)], prior, run=run)
    assert len(run.history["train"]) == 2


@pytest.mark.parametrize("unit", ["prior", "photos", "preview"])
def test_cancel_acts_during_preparation_too(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, unit: str
) -> None:
    seen: list[str] = []

    def on_step(name: str, done: int, total: int, metrics: dict[str, float]) -> None:
        seen.append(name)
        run.request = "cancel" if name == unit else None

    run = InProcessRun(on_step=on_step)
    with pytest.raises(Cancelled):
        teach(model, [stark(photos)], tmp_path, run=run, previews=["a <stark> dog"])
    assert seen.count(unit) == 1


def test_finish_keeps_what_is_learned(model: DiffusionModel, photos: list[Path], prior: Path) -> None:
    run = request_at(InProcessRun(), 4, "finish")
    weights = teach(model, [stark(photos)], prior, run=run)
    assert weights.manifest.steps == 4
    assert run.notes[0][0] == "finished_early"
    exactly = teach(model, [stark(photos)], prior, steps=4)
    assert all(torch.equal(weights.tensors[name], exactly.tensors[name]) for name in weights.tensors)


def test_finish_before_the_first_step_keeps_nothing(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    run = InProcessRun()
    run.on_step = lambda unit, *_: setattr(run, "request", "finish" if unit == "preview" else None)
    with pytest.raises(Cancelled):
        teach(model, [stark(photos)], prior, run=run, previews=["a <stark> dog"])


def test_previews_start_with_the_untrained_concept_and_keep_their_seeds(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    run = InProcessRun()
    texts = ["a <stark> dog", "a <stark> dog on the beach"]
    teach(model, [stark(photos)], prior, run=run, previews=texts, learning_rate=0.05)
    assert sorted(run.previews) == [0, 3, 6]
    assert all([image.prompt for image in images] == texts for images in run.previews.values())
    assert all([image.seed for image in images] == [7, 8] for images in run.previews.values())
    assert (run.previews[0][0].pixels != run.previews[6][0].pixels).any()
    assert run.previews[0][0].pixels.shape == (32, 32, 3)


# ---- when it goes wrong


def poisoned(trainee: Trainee, steps: set[int], factor: float) -> Trainee:
    """The photos of ``steps`` are multiplied by ``factor``."""

    def rows(step: int) -> Rows:
        good = trainee.rows(step)
        return replace(good, latents=good.latents * factor) if step in steps else good

    return replace(trainee, rows=rows)


def test_a_few_steps_that_are_not_finite_are_skipped(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    run = InProcessRun()
    trainee = poisoned(prepare(model, [stark(photos)], prior, steps=9), {1, 2, 3, 4, 5}, float("nan"))
    (weights,) = train(model, [trainee], run)
    assert weights.manifest.steps == 9
    assert run.notes == []
    assert len(run.history["train"]) == 9


def test_one_more_and_it_goes_back_and_halves_the_rate_once(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """Poison that comes again is divergence; poison that a smaller rate avoids is a recovery."""
    trainee = prepare(model, [stark(photos)], prior, steps=9)
    run = InProcessRun()
    with pytest.raises(TrainingDiverged, match="twice") as caught:
        train(model, [poisoned(trainee, set(range(1, 9)), float("nan"))], run)
    assert caught.value.code == "training_diverged"
    assert [code for code, _ in run.notes] == ["recovered"]
    assert run.history["train"][-1]["step"] == SKIPS_IN_A_ROW + 1


def test_recovery_restores_the_last_good_state(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    progress = Progress(prepare(model, [stark(photos)], prior))
    run = InProcessRun()
    before = {name: tensor.detach().clone() for name, tensor in progress.tensors.items()}
    for _ in range(3):
        advance(model, [progress], run)
    progress.recover(run)
    assert progress.done == 0
    assert progress.learning_rate_scale == 0.5
    assert all(torch.equal(before[name], tensor) for name, tensor in progress.tensors.items())
    assert progress.optimiser.state() == {}


def test_the_watch_sees_an_explosion_but_not_a_spike() -> None:
    calm = LossWatch([1.0] * 30)
    assert [calm.judge(50.0, 1.0) for _ in range(EXPLOSION_STEPS - 1)] == ["go"] * (EXPLOSION_STEPS - 1)
    assert calm.judge(1.0, 1.0) == "go"
    assert [calm.judge(50.0, 1.0) for _ in range(EXPLOSION_STEPS)][-1] == "recover"
    assert LossWatch.from_scalars(calm.scalars()) == calm


def test_the_watch_judges_gradients_as_well() -> None:
    watch = LossWatch()
    assert [watch.judge(1.0, float("inf")) for _ in range(SKIPS_IN_A_ROW + 1)] == [
        "skip"
    ] * SKIPS_IN_A_ROW + ["recover"]


# ---- several


def test_two_trainees_share_batches_and_nothing_else(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    one = prepare(model, [stark(photos)], prior, seed=1)
    two = prepare(model, [ConceptExamples("wolf", "cat", "subject", photos[:2])], prior, seed=2, steps=4)
    together = train(model, [replace(one, unit="one"), replace(two, unit="two")], InProcessRun())
    alone: list[ConceptWeights] = [
        teach(model, [stark(photos)], prior, seed=1),
        teach(model, [ConceptExamples("wolf", "cat", "subject", photos[:2])], prior, seed=2, steps=4),
    ]
    assert [weights.manifest.steps for weights in together] == [6, 4]
    for joint, single in zip(together, alone, strict=True):
        assert joint.tensors.keys() == single.tensors.keys()
        for name, tensor in joint.tensors.items():
            torch.testing.assert_close(tensor, single.tensors[name], atol=2e-4, rtol=1e-3)


def test_a_neighbour_that_diverges_does_no_harm(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    good = Progress(prepare(model, [stark(photos)], prior, seed=1))
    bad = Progress(poisoned(prepare(model, [stark(photos)], prior, seed=2), set(range(9)), float("nan")))
    alone = Progress(prepare(model, [stark(photos)], prior, seed=1))
    for _ in range(3):
        advance(model, [good, bad], InProcessRun())
        advance(model, [alone], InProcessRun())
    for name, tensor in good.tensors.items():
        torch.testing.assert_close(tensor, alone.tensors[name], atol=2e-4, rtol=1e-3)
    assert all(not matrix.any() for name, matrix in bad.tensors.items() if name.startswith("site."))
