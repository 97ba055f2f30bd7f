"""The proof of a closed-form merge (methods.md 6.7): measured on what is stored, against what the algebra says.

Residuals are measured after the cast to the precision in which the matrices are used; drift with the stored factors on
the captions, held and held out; stationarity (KKT) in float64 before the cast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.schemas.merges.requests import SiteMerge
from worker.ml.caption_factor import CaptionFactor
from worker.ml.families.base import DiffusionModel, Site
from worker.ml.least_change import LeastChange, stationarity

RESIDUAL, RESIDUAL_OF_CHANGE = 1e-6, 1e-5
HALF_RESIDUAL = 1e-3
"""Where matrices are used in half precision."""
STATIONARITY = 1e-6
DRIFT_AGREEMENT = 1e-3
"""Between drift predicted and measured, relative."""
CONTRADICTION = 1e-6
"""Share of the wanted change from which on concepts are said to contradict one another."""
ROWS_IN_CACHE = 128
"""Rows of a matrix that are proved at once: with what is computed of them they fit a core's cache."""


@dataclass(frozen=True, eq=False)
class Solved:
    """A merge before it is believed. ``wanted`` {site: R [o, s]} float64, ``promised`` [s]: rows that are words of a
    concept, not before them; ``values`` {site: [o, r]} and ``rows`` [r, d] fp32 as they are stored.
    """

    change: LeastChange
    factor: CaptionFactor
    wanted: Mapping[str, Tensor]
    promised: Tensor
    values: Mapping[str, Tensor]
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Proof:
    """Numbers of each site, and sentences: why not, and what a person should know."""

    sites: list[SiteMerge]
    failures: list[str]
    notes: list[str]


def prove(model: DiffusionModel, solved: Solved, sites: Sequence[Site]) -> Proof:
    """Of all ``sites``, in their order."""
    norms = caption_norms(model, solved.factor, sites)
    shared = _shared(solved)
    measured = [_site(model, solved, site, shared, norms[site.name]) for site in sites]
    rounding = {site.name: each[1] for site, each in zip(sites, measured, strict=True)}
    numbers = [each[0] for each in measured]
    agreements = [each[2] for each in measured]
    limit, limit_of_change = (
        (RESIDUAL, RESIDUAL_OF_CHANGE) if model.dtype.itemsize >= 4 else (HALF_RESIDUAL,) * 2
    )
    failures, notes = [], []
    contradicted = max((each.inconsistency or 0.0 for each in numbers), default=0.0)
    if contradicted > CONTRADICTION:
        told = (
            f"The concepts contradict one another: up to {contradicted:.1%} of the wanted change at a site is asked "
            "differently for the same text."
        )
        notes.append(told)
    off = max((each.residual or 0.0 for each in numbers), default=0.0)
    if off > limit:
        failures.append(
            f"The words are off by {off:.1e} of their keys and values; at most {limit:.0e} is a proof."
        )
    late = [
        each
        for each in numbers
        if (each.residual_of_change or 0.0) > limit_of_change
        and (each.residual_of_change or 0.0) > 2 * rounding[each.site]
    ]
    if late:
        worst = max(each.residual_of_change or 0.0 for each in late)
        failures.append(
            f"The words are off by {worst:.1e} of what was learned; at most {limit_of_change:.0e} is a proof."
        )
    elif any((each.residual_of_change or 0.0) > limit_of_change for each in numbers):
        notes.append(
            "Some sites were changed so little that the rounding of their matrix is all they are off by."
        )
    bent = max((each.stationarity or 0.0 for each in numbers), default=0.0)
    if bent > STATIONARITY:
        failures.append(f"The change is not the smallest: the optimality condition is missed by {bent:.1e}.")
    if max(agreements, default=0.0) > DRIFT_AGREEMENT:
        failures.append(
            f"Predicted and measured drift differ by {max(agreements):.1e}; at most {DRIFT_AGREEMENT:.0e} is a proof."
        )
    return Proof(numbers, failures, notes)


@dataclass(frozen=True, eq=False)
class CaptionNorms:
    """{site: (on the captions held, on those held out)}."""

    by_site: Mapping[str, tuple[float, float]]


@torch.no_grad()
def caption_norms(
    model: DiffusionModel, factor: CaptionFactor, sites: Sequence[Site]
) -> Mapping[str, tuple[float, float]]:
    """``||W0 C_reg^T||_F`` of each site on the captions held and held out, in single precision; found once for a
    base.
    """
    known = model.derived.get(factor)
    if isinstance(known, CaptionNorms):
        return known.by_site
    held, out = (each.to(model.device, torch.float32) for each in (factor.held.states, factor.held_out))
    norms = {}
    for site in sites:
        weight = site.weight.float()
        norms[site.name] = float((weight @ held.T).norm()), float((weight @ out.T).norm())
    model.derived[factor] = CaptionNorms(norms)
    return norms


@dataclass(frozen=True, eq=False)
class _Shared:
    """What all sites have in common: Gram matrices of the stored rows and of the optimality condition."""

    held: Tensor
    held_out: Tensor
    own: Tensor
    off: Tensor
    pulled: Tensor


def _shared(solved: Solved) -> _Shared:
    rows = solved.rows.double()
    off, pulled = stationarity(solved.change, solved.factor.held)
    on_held, on_out = rows @ solved.factor.held.states.T, rows @ solved.factor.held_out.T
    return _Shared(on_held @ on_held.T, on_out @ on_out.T, rows @ rows.T, off @ off.T, pulled @ pulled.T)


def _norm(coefficients: Tensor, gram: Tensor) -> float:
    """``||coefficients B||_F`` from ``B B^T``."""
    return float(((coefficients @ gram) * coefficients).sum().clamp(min=0.0).sqrt())


def _site(
    model: DiffusionModel, solved: Solved, site: Site, shared: _Shared, norms: tuple[float, float]
) -> tuple[SiteMerge, float, float]:
    """(numbers, what rounding the matrix alone makes the words be off by, disagreement of predicted and measured)."""
    wanted, promised = solved.wanted[site.name], solved.promised
    states, asked = solved.change.rows[promised], wanted[:, promised]
    values, weight = solved.values[site.name], site.weight.detach().cpu()
    made, rounded, before = _as_cast(weight, values, solved.rows, states)
    size, total = asked.norm(), (before + asked).norm()
    off = (made - asked).norm()
    coefficients = solved.change.coefficients(wanted)
    predicted, ridge = float(coefficients.norm()), solved.factor.held.ridge
    wide = values.double()
    drift, length = _norm(wide, shared.held), _norm(wide, shared.own)
    with_ridge = (drift**2 + ridge * length**2) ** 0.5
    numbers = SiteMerge(
        site=site.name,
        change=length,
        rank=solved.change.rank,
        residual=_share(off, total),
        residual_of_change=_share(off, size),
        inconsistency=_share(solved.change.contradicted(wanted).norm(), wanted.norm()),
        drift=_share(drift, norms[0]),
        drift_predicted=_share(max(predicted**2 - ridge * length**2, 0.0) ** 0.5, norms[0]),
        drift_held_out=_share(_norm(wide, shared.held_out), norms[1]),
        stationarity=_share(_norm(coefficients, shared.off), _norm(coefficients, shared.pulled)),
    )
    return numbers, _share(rounded, size), abs(with_ridge - predicted) / predicted if predicted else 0.0


def _as_cast(weight: Tensor, values: Tensor, rows: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What adding ``values @ rows`` to the matrix [o, d] in its own precision does to ``states`` [s, d]: [o, s] in
    float64, the size of what rounding takes of it, and what the matrix itself makes of them, [o, s]. Some rows at a
    time: this is what a merge costs, and most of that is memory.
    """
    wide, single = states.T.contiguous(), states.T.float().contiguous()
    made, lost, before = [], [], []
    for first in range(0, len(weight), ROWS_IN_CACHE):
        part = slice(first, first + ROWS_IN_CACHE)
        change, old = values[part] @ rows, weight[part].float()
        cast = (old + change).to(weight.dtype).float() - old
        made.append(cast.double() @ wide)
        lost.append((change - cast) @ single)
        before.append(old @ single)
    return torch.cat(made), torch.cat(lost).norm(), torch.cat(before).double()


def _share(part: Tensor | float, whole: Tensor | float) -> float:
    return float(part) / float(whole) if float(whole) > 0.0 else 0.0
