"""What weights change, and how much (methods.md 3; singular values: methods.md 7)."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

import torch
from torch import Tensor

from backend.schemas.weights import SiteChange, WeightsAnalysis
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families.base import DiffusionModel, Group, Site
from worker.ml.methods import method_of

LISTED_VALUES = 32
TINY_NORM = 1e-6


def weight_change(model: DiffusionModel, weights: ConceptWeights) -> WeightsAnalysis:
    """``||dW||_F / ||W||_F`` per changed site, largest first, with the spectrum of dW; means per group;
    change of each V*.

    A group's mean runs over every Linear and Conv weight of the group, unchanged ones counting as 0; weights
    with a norm below 1e-6 are left out, their ratio means nothing. In float64. Departure from the paper:
    biases and gains of norms are not counted. Raises `WeightsInvalid` when the weights do not fit the model.
    """
    deltas = method_of(weights).deltas(model, weights)
    listed: list[SiteChange] = []
    by_group: dict[Group, list[float]] = defaultdict(list)
    for site in model.sites():
        norm = float(torch.linalg.vector_norm(site.weight.double()))
        if norm < TINY_NORM:
            continue
        if site.name not in deltas:
            by_group[site.group].append(0.0)
            continue
        change = site_change(site, norm, deltas[site.name])
        by_group[site.group].append(change.relative_change)
        listed.append(change)
    return WeightsAnalysis(
        sites=sorted(listed, key=lambda change: -change.relative_change),
        mean_by_group={group: fmean(changes) for group, changes in by_group.items()},
        token_change=token_change(weights),
    )


def site_change(site: Site, norm: float, delta: Tensor) -> SiteChange:
    """``norm`` is the Frobenius norm of the base's weight. Convolutions count as [out, in * kh * kw]."""
    singular = torch.linalg.svdvals(delta.double().flatten(1))
    squared = singular.square()
    energy = squared.cumsum(0) / squared.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return SiteChange(
        site=site.name,
        group=site.group,
        shape=list(delta.shape),
        relative_change=float(squared.sum().sqrt()) / norm,
        singular_values=singular[:LISTED_VALUES].tolist(),
        energy_by_rank=energy[:LISTED_VALUES].tolist(),
    )


def token_change(weights: ConceptWeights) -> dict[str, float]:
    """``||V* - start|| / ||start||`` of each placeholder."""
    changes = {}
    for taught in weights.manifest.tokens:
        if not taught.vectors:
            continue
        start = weights.tensors[f"token.{taught.token}.start"].double()
        learned = weights.tensors[f"token.{taught.token}.learned"].double()
        norm = torch.linalg.vector_norm(start).clamp(min=TINY_NORM)
        changes[taught.token] = float(torch.linalg.vector_norm(learned - start) / norm)
    return changes
