"""The one training loop: noise, time steps, loss, optimiser, checkpoints. What is learned belongs to the
trainees.

A step costs one forward and backward of the denoiser and little else: latents are ready, the autoencoder does
not run, only texts with a placeholder go through the text encoder, each distinct text once. No gradient is
computed before the first cross-attention: with the denoiser frozen and its input constant, automatic
differentiation itself starts there.

Rows of several trainees share one batch; each has its own draws, loss, clipping and optimiser. Every draw is
a function of (seed, stream, step) and everything else is in the checkpoint, so an interrupted and resumed run
ends byte-equal to an undisturbed one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import StatesCache
from worker.ml.errors import TrainingDiverged
from worker.ml.families.base import DiffusionModel
from worker.ml.run import FinishRequested, Released, ReleaseRequested, Run
from worker.ml.training.cadence import Cadence
from worker.ml.training.checkpoint import Checkpoint
from worker.ml.training.gradients import losses_with_gradients
from worker.ml.training.guard import GOOD_EVERY, LossWatch
from worker.ml.training.losses import Loss
from worker.ml.training.optimiser import NamedAdamW
from worker.ml.training.trainee import Trainee


class Progress:
    """One trainee's state between steps: ``done`` steps are made."""

    def __init__(self, trainee: Trainee) -> None:
        self.trainee = trainee
        self.tensors = trainee.tensors()
        self.optimiser = NamedAdamW(trainee.groups, trainee.optimiser)
        self.watch = LossWatch()
        self.states: StatesCache = {}
        self.base_states: StatesCache = {}  # of the untouched text encoder, whatever the trainee does to it
        self.done = 0
        self.learning_rate_scale = 1.0
        self.parts = 1  # of each batch; more once the device was too small for a whole one
        self.good = self.snapshot()

    def held(self) -> dict[str, Tensor]:
        """All tensors that steps change: those that are trained, and those that follow them."""
        return {**self.tensors, **self.trainee.followers}

    def snapshot(self) -> Checkpoint:
        """Copies of everything that changes, on the CPU."""
        return Checkpoint(
            step=self.done,
            tensors={name: tensor.detach().cpu().clone() for name, tensor in self.held().items()},
            optimiser=self.optimiser.state(),
            scalars={
                "fingerprint": self.trainee.fingerprint,
                "learning_rate_scale": self.learning_rate_scale,
                "parts": self.parts,
                "torch": torch.__version__,
                **self.watch.scalars(),
            },
        )

    def restore(self, state: Checkpoint) -> None:
        with torch.no_grad():
            for name, tensor in self.held().items():
                tensor.copy_(state.tensors[name])
        self.optimiser.restore(state.optimiser)
        self.watch = LossWatch.from_scalars(state.scalars)
        self.learning_rate_scale = float(state.scalars["learning_rate_scale"])
        self.parts = max(self.parts, int(state.scalars.get("parts", 1)))  # a smaller device stays small
        self.done = state.step

    def recover(self, run: Run) -> None:
        """Back to the last good state with half the learning rate; the second time the training has diverged."""
        if self.learning_rate_scale < 1.0:
            raise TrainingDiverged(
                "The loss left all bounds twice, also with half the learning rate. Try a smaller one."
            )
        self.restore(self.good)
        self.watch.reset()
        self.learning_rate_scale = 0.5
        run.note(
            "recovered",
            f"The loss left all bounds; went back to step {self.done} with half the learning rate.",
        )


def train(model: DiffusionModel, trainees: Sequence[Trainee], run: Run) -> list[ConceptWeights]:
    """Trains all to their ends, in one batch a step, and returns their weights in order. With a trainee that has
    something installed (weight side) they train one after another.

    Resumes from ``run.resume``. Previews come before the first step, every ``preview_every`` steps and at the
    end. Raises `Cancelled`, `Released` (after a checkpoint), `TrainingDiverged`, `DeviceMemoryShort`.
    """
    if len(trainees) > 1 and any(trainee.alone for trainee in trainees):
        return [weights for trainee in trainees for weights in train(model, [trainee], run)]
    with ExitStack() as installed:
        for trainee in trainees:
            installed.enter_context(trainee.installed())
        progresses = [Progress(trainee) for trainee in trainees]
        for progress in progresses:
            _resume(progress, run)
        cadence = Cadence(run.checkpoint_s)
        try:
            for progress in progresses:
                if progress.done == 0:
                    _preview(progress, run)
            while active := [progress for progress in progresses if progress.done < progress.trainee.steps]:
                losses = advance(model, active, run)
                _after_step(active, losses, cadence, run)
        except FinishRequested:
            if not any(progress.done for progress in progresses):
                raise
            run.note("finished_early", f"Finished on request after {max(p.done for p in progresses)} steps.")
        except ReleaseRequested:
            _checkpoint(progresses, run)
            raise Released from None
        _checkpoint(progresses, run)
        return [progress.trainee.result(progress.done) for progress in progresses]


def advance(model: DiffusionModel, active: Sequence[Progress], run: Run) -> list[Loss]:
    """One optimiser step of every active trainee, all rows in one batch of the denoiser where they fit."""
    batches = [progress.trainee.rows(progress.done) for progress in active]
    losses = losses_with_gradients(model, active, batches, run)
    for progress, loss in zip(active, losses, strict=True):
        _update(progress, loss, run)
    return losses


def _update(progress: Progress, loss: Loss, run: Run) -> None:
    """Clip, judge, step. A skipped step counts as made: its draws are not drawn again."""
    gradients = [tensor.grad for tensor in progress.tensors.values() if tensor.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.tensor(0.0)
    verdict = progress.watch.judge(loss.total.item(), norm.item())
    if verdict == "recover":
        progress.recover(run)
        return
    if verdict == "go":
        scale = progress.trainee.max_grad_norm / (float(norm) + 1e-6)
        if scale < 1.0:
            for gradient in gradients:
                gradient.mul_(scale)
        progress.optimiser.step(progress.learning_rate_scale)
        progress.trainee.constrain()
    progress.done += 1
    if progress.watch.calm and progress.done % GOOD_EVERY == 0:
        progress.good = progress.snapshot()


def _after_step(active: Sequence[Progress], losses: Sequence[Loss], cadence: Cadence, run: Run) -> None:
    previewed = [progress for progress in active if _preview_due(progress)]
    if cadence.due() or (previewed and cadence.affordable()):
        started = time.monotonic()
        _checkpoint(active, run)
        cadence.written(started)
    for progress, loss in zip(active, losses, strict=True):
        metrics = {"loss": loss.total.item(), "photo_loss": loss.photos.item()}
        if loss.prior is not None:
            metrics["prior_loss"] = loss.prior.item()
        if loss.unmix is not None:
            metrics["unmix_loss"] = loss.unmix.item()
        metrics |= {f"photo_loss/{token}": of.item() for token, of in loss.by_token.items()}
        metrics |= progress.trainee.measures()
        if progress.parts > 1:
            metrics["gradient_accumulation"] = progress.parts
        run.step(progress.trainee.unit, progress.done, progress.trainee.steps, **metrics)
    for progress in previewed:
        _preview(progress, run)


def _preview_due(progress: Progress) -> bool:
    every, done = progress.trainee.preview_every, progress.done
    return done == progress.trainee.steps or (every > 0 and done % every == 0)


def _preview(progress: Progress, run: Run) -> None:
    images = progress.trainee.preview(run)
    if images:
        run.preview(progress.trainee.unit, progress.done, images)


def _checkpoint(progresses: Sequence[Progress], run: Run) -> None:
    for progress in progresses:
        run.checkpoint(progress.trainee.unit, progress.snapshot())


def _resume(progress: Progress, run: Run) -> None:
    state = run.resume(progress.trainee.unit)
    if state is None:
        return
    if state.scalars.get("fingerprint") != progress.trainee.fingerprint:
        run.note("checkpoint_discarded", "A checkpoint of another training was found and not used.")
        return
    progress.restore(state)
    progress.good = progress.snapshot()
