"""Losses and gradients of one step: all rows at once, or in two halves when the device is too small for that.

Gradient accumulation: with weights ``w`` such that the objective is the sum of ``w_r`` times the loss of row ``r``
(`losses.row_weights`), the gradients of the halves add up to those of the whole. Draws are made for the whole
batch either way, so only the order of the sums differs.

Running out of memory spoils nothing: the failed batch is forgotten, the allocator's cache emptied, and the step
computed again in halves, as is every later step. Where halves do not fit either, the training ends with
`DeviceMemoryShort`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.ml.conditioning import Conditioning, Prompt, text_kv
from worker.ml.errors import DeviceMemoryShort
from worker.ml.families.base import DiffusionModel
from worker.ml.run import Run
from worker.ml.streams import rng
from worker.ml.training.losses import (
    Loss,
    masked_squared_error,
    min_snr_weight,
    row_weights,
    unmix_term,
    with_prior,
)
from worker.ml.training.trainee import Rows
from worker.ml.training.unmix import Sides, placed_words, unmix_losses

if TYPE_CHECKING:
    from worker.ml.training.loop import Progress

HALVES = 2


@dataclass(frozen=True, eq=False)
class RowLosses:
    """Of rows of one trainee: ``errors`` [B], and ``L_unmix`` [R] of the collages among them, None where nobody asks
    for or there are none.
    """

    errors: Tensor
    unmix: Tensor | None

    def detached(self) -> RowLosses:
        return RowLosses(self.errors.detach(), None if self.unmix is None else self.unmix.detach())

    @staticmethod
    def concatenated(parts: Sequence[RowLosses]) -> RowLosses:
        """The rows of ``parts`` one after another."""
        unmix = [part.unmix for part in parts if part.unmix is not None]
        return RowLosses(torch.cat([part.errors for part in parts]), torch.cat(unmix) if unmix else None)


def losses_with_gradients(
    model: DiffusionModel, active: Sequence[Progress], batches: Sequence[Rows], run: Run
) -> list[Loss]:
    """The loss of every trainee, its gradients in ``grad`` of its tensors. A loss that is not finite leaves none.

    Raises `DeviceMemoryShort`.
    """
    try:
        return _computed(model, active, batches)
    except torch.OutOfMemoryError as error:
        halved = any(progress.parts > 1 for progress in active)
        if halved or max(len(rows.latents) for rows in batches) < HALVES:
            raise DeviceMemoryShort from error
    # only here, behind the handler, does the traceback no longer hold the tensors of the failed batch
    for progress in active:
        progress.optimiser.clear_gradients()
        progress.parts = HALVES
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    run.note(
        "memory_short",
        "The device has too little memory for a whole batch; each step is computed in two halves from here on.",
    )
    try:
        return _computed(model, active, batches)
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryShort from error


def _computed(model: DiffusionModel, active: Sequence[Progress], batches: Sequence[Rows]) -> list[Loss]:
    for progress in active:
        progress.optimiser.clear_gradients()
    parts = max(progress.parts for progress in active)
    if parts > 1:
        return _in_parts(model, active, batches, parts)
    whole = [slice(0, len(rows.latents)) for rows in batches]
    found = _row_losses(model, active, batches, whole)
    losses = [_loss(*each) for each in zip(active, batches, found, strict=True)]
    _backward([loss.total for loss in losses])
    return losses


def _loss(progress: Progress, rows: Rows, found: RowLosses) -> Loss:
    trainee = progress.trainee
    loss = with_prior(found.errors, rows.prior, trainee.prior_weight, rows.tokens)
    return loss.with_unmix(found.unmix, rows.prior, trainee.unmix_weight)


def _in_parts(
    model: DiffusionModel, active: Sequence[Progress], batches: Sequence[Rows], parts: int
) -> list[Loss]:
    weights = [
        row_weights(rows.prior, progress.trainee.prior_weight).to(model.device)
        for rows, progress in zip(batches, active, strict=True)
    ]
    found: list[list[RowLosses]] = [[] for _ in active]
    for part in range(parts):
        chosen = [_share(len(rows.latents), part, parts) for rows in batches]
        row_losses = _row_losses(model, active, batches, chosen)
        totals = [(w[c] * of.errors).sum() for w, c, of in zip(weights, chosen, row_losses, strict=True)]
        for nth, (progress, rows, of) in enumerate(zip(active, batches, row_losses, strict=True)):
            if of.unmix is not None:
                totals[nth] = totals[nth] + unmix_term(of.unmix, rows.prior, progress.trainee.unmix_weight)
            found[nth].append(of.detached())
        _backward(totals)
    return [
        _loss(progress, rows, RowLosses.concatenated(kept))
        for progress, rows, kept in zip(active, batches, found, strict=True)
    ]


def _share(rows: int, part: int, parts: int) -> slice:
    return slice(rows * part // parts, rows * (part + 1) // parts)


def _backward(totals: Sequence[Tensor]) -> None:
    """One backward pass for all trainees; those that are not finite are left out."""
    finite = [total for total in totals if bool(torch.isfinite(total))]
    if finite:
        torch.stack(finite).sum().backward()  # type: ignore[no-untyped-call]


def _row_losses(
    model: DiffusionModel, active: Sequence[Progress], batches: Sequence[Rows], chosen: Sequence[slice]
) -> list[RowLosses]:
    """The losses of each trainee's chosen rows, all in one batch of the denoiser."""
    noisy, timesteps, targets, masks, conditionings = [], [], [], [], []
    collages = list[dict[int, Sides]]()
    for progress, rows, part in zip(active, batches, chosen, strict=True):
        trainee = progress.trainee
        x_t, t, target = model.noised(rows.latents, rng(trainee.seed, "noise", progress.done))
        noisy.append(x_t[part])
        timesteps.append(t[part])
        target = _with_own_predictions(model, progress, rows, part, (x_t, t, target))
        targets.append(target[part])
        masks.append(rows.masks[part])
        texts = text_kv(
            model,
            rows.prompts,
            detach_first=trainee.detach_first,
            cache=progress.states,
            encoder_gradient=trainee.trains_text_encoder,
        )
        conditionings.append(texts.rows(rows.prompt_of_row[part]))
        collages.append(placed_words(model, rows, part) if trainee.unmix_weight else {})
    counts = [len(part) for part in timesteps]
    conditioning = Conditioning.concatenated(conditionings)
    if any(collages):
        conditioning = replace(conditioning, queries={})
    prediction = model.predict(torch.cat(noisy), torch.cat(timesteps), conditioning)
    losses = masked_squared_error(prediction, torch.cat(targets), torch.cat(masks))
    gammas = [progress.trainee.min_snr_gamma for progress in active]
    if any(gamma is not None for gamma in gammas):
        weights = [
            torch.ones_like(part, dtype=losses.dtype)
            if gamma is None
            else min_snr_weight(model.signal_to_noise(part), gamma, model.prediction_type)
            for part, gamma in zip(timesteps, gammas, strict=True)
        ]
        losses = losses * torch.cat(weights)
    unmix = _unmixed(conditioning, noisy, collages)
    return [RowLosses(*each) for each in zip(torch.split(losses, counts), unmix, strict=True)]


def _unmixed(
    conditioning: Conditioning, noisy: Sequence[Tensor], collages: Sequence[Mapping[int, Sides]]
) -> list[Tensor | None]:
    """``L_unmix`` of each trainee's ``collages``, whose rows of the batch follow one another."""
    found = list[Tensor | None]()
    first = 0
    for latents, own in zip(noisy, collages, strict=True):
        size = (latents.shape[-2], latents.shape[-1])
        placed = {first + place: words for place, words in own.items()}
        found.append(unmix_losses(conditioning, size, placed) if placed else None)
        first += len(latents)
    return found


def _with_own_predictions(
    model: DiffusionModel,
    progress: Progress,
    rows: Rows,
    part: slice,
    noised: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """The target [B, C, h, w] of ``noised``, with the base model's own predictions for those prior rows that ``part``
    holds.
    """
    noisy, timesteps, target = noised
    preserved = [row for row in range(len(rows.prior))[part] if rows.prior[row]]
    if rows.untouched is None or not preserved:
        return target
    texts = list(dict.fromkeys(rows.prompts[rows.prompt_of_row[row]].text for row in preserved))
    place = torch.tensor(preserved, device=target.device)
    with rows.untouched.in_place():
        read = text_kv(model, [Prompt(text) for text in texts], cache=progress.base_states)
        conditioning = read.rows(
            [texts.index(rows.prompts[rows.prompt_of_row[row]].text) for row in preserved]
        )
        predicted = model.predict(noisy[place], timesteps[place], conditioning)
    return target.index_copy(0, place, predicted.to(target))
