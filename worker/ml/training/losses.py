"""The loss of Custom Diffusion and its relatives (methods.md 4, "Objective").

``L = mean over photo rows of (1/(|M| C)) sum_M (target - prediction)^2 + lambda * mean over prior rows of the
same``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from worker.ml.families.base import PredictionType


def masked_squared_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """[B, C, h, w] twice and mask [B, 1, h, w] -> [B]: per row, the mean over the valid cells and all
    channels.
    """
    squared = (prediction.float() - target.float()).square() * mask
    return squared.sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) * prediction.shape[1])


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Hang et al. 2023 (arXiv 2303.09556) eq. 3: ``min(snr, gamma) / snr`` for noise, ``/ (snr + 1)`` for v;
    [B] -> [B].
    """
    return snr.clamp(max=gamma) / (snr if prediction_type == "epsilon" else snr + 1.0)


@dataclass(frozen=True)
class Loss:
    """``total`` is what is minimised; ``photos`` and ``prior`` its two means before lambda (prior is None
    without one). ``by_token``: of a joint training, the mean over the photo rows of each concept that has any.
    ``unmix``: the mean over the collages before its weight; None where it is not asked for or there is no collage.
    """

    total: Tensor
    photos: Tensor
    prior: Tensor | None
    by_token: Mapping[str, Tensor] = field(default_factory=dict)
    unmix: Tensor | None = None

    def with_unmix(self, collages: Tensor | None, prior: Sequence[bool], weight: float) -> Loss:
        """The same with ``L_unmix`` of every collage [R] (see `worker.ml.training.unmix`)."""
        if collages is None:
            return self
        total = self.total + unmix_term(collages, prior, weight)
        return replace(self, total=total, unmix=collages.detach().mean())


def row_weights(prior: Sequence[bool], prior_weight: float) -> Tensor:
    """[B]: what the loss of each row counts in ``with_prior(...).total``, which is their weighted sum."""
    preserved = sum(prior)
    photos = len(prior) - preserved
    return torch.tensor([prior_weight / preserved if of_prior else 1.0 / photos for of_prior in prior])


def unmix_term(collages: Tensor, prior: Sequence[bool], weight: float) -> Tensor:
    """What ``L_unmix`` [R] of collages adds to the objective: that of a photo row that is none is 0, so that a collage
    counts as much in a batch as alone.
    """
    return weight * collages.sum() / (len(prior) - sum(prior))


def with_prior(
    row_losses: Tensor, prior: Sequence[bool], prior_weight: float, tokens: Sequence[str] = ()
) -> Loss:
    """Row losses [B] -> the objective. The two means are taken separately, so lambda does not depend on the
    batch's split. ``tokens`` [B] as `worker.ml.training.trainee.Rows` has them.
    """
    by_token = {
        token: row_losses[[row for row, own in enumerate(tokens) if own == token and not prior[row]]]
        .mean()
        .detach()
        for token in sorted({own for own, kept in zip(tokens, prior, strict=False) if own and not kept})
    }
    is_prior = torch.tensor(list(prior), device=row_losses.device)
    photos = row_losses[~is_prior].mean()
    if not any(prior):
        return Loss(photos, photos, None, by_token)
    preserved = row_losses[is_prior].mean()
    return Loss(photos + prior_weight * preserved, photos, preserved, by_token)
