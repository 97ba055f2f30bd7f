"""Smaller weights: the change of every site cut to its largest singular values (Kumari et al., CVPR 2023, section 4.4
and appendix; methods.md 7).

For each matrix the best approximation of rank r is ``dW ~ (U_r S_r) Y_r^T`` (Eckart and Young 1936); its squared error
is the sum of the squared singular values that are left out. r follows from one of

- ``rank``: the same for all; a site with fewer is kept as it is;
- ``nuclear``: smallest r whose singular values sum to a share q of all (the authors' criterion, q = 0.6);
- ``energy``: the same with their squares;
- ``bytes``: a budget for the whole file, shared out greedily (`worker.ml.compression.allocation`);
- ``token-only``: nothing but the words.

Changes that a method holds in its own way (LoHa, LoKr, DoRA) are cut by their dense matrices; those of a closed-form
merge, which share their rows, all at once (`worker.ml.compression.held`).

Departures from the authors' code: differences from the fp32 base are cut, so no rounding noise of the base is in them;
the component that crosses the share is kept, so r is never 0 by accident. Changes of vectors (biases, gains) are kept
whole, or shared out like a matrix of one component under a budget. Factored changes are cut from their factors.

The result is weights of the same method or merge: what reads a change reads its factors (`worker.ml.stored_changes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from backend.schemas.compressions import CompressionReport, SiteCompression, SizeAndError
from backend.schemas.methods import CARDS
from backend.schemas.weights import Compression
from backend.schemas.weights_layout import least_bytes
from worker.ml.compression.allocation import Options, allocate, kept, one_rank, size
from worker.ml.compression.held import EVERYWHERE, AtSite, Held, InSharedRows
from worker.ml.compression.spectra import flat
from worker.ml.compression.storage import NAMES, Piece, piece
from worker.ml.concept_weights import CODE_VERSION, SHARED_ROWS, ConceptWeights
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.readers import reader_of
from worker.ml.run import Run

CURVE = (0.6, 0.4, 0.25, 0.15, 0.1, 0.06, 0.04, 0.02, 0.01)
"""Budgets of the report's curve, in shares of the size before."""
_NEAR_ONE = 1.0 - 1e-12
"""A share of exactly 1 must not fail by the rounding of a sum."""


@dataclass(frozen=True, eq=False)
class Smaller:
    """New weights and what was lost."""

    weights: ConceptWeights
    report: CompressionReport


@torch.no_grad()
def compress(
    model: DiffusionModel, weights: ConceptWeights, wanted: Compression, parent: str, run: Run
) -> Smaller:
    """Weights cut as ``wanted`` says; ``parent`` is the id of ``weights``.

    Raises `InputInvalid` (nothing to cut, a rank above every site's, a budget below the words alone),
    `WeightsInvalid`, `MethodUnsupported` and what `Run.step` raises.
    """
    reader_of(weights).edit(model, weights)  # they are whole, and of this base
    if (card := CARDS.get(weights.manifest.method)) is not None and card.small_already:
        raise InputInvalid(card.small_already)
    manifest = weights.manifest.model_copy(
        update={"compression": wanted, "parents": [parent], "code_version": CODE_VERSION}
    )
    words = {name: tensor for name, tensor in weights.tensors.items() if name.startswith("token.")}
    before = len(weights.to_bytes())
    largest = max(before, int(wanted.value) if wanted.criterion == "bytes" else 0)
    bare = ConceptWeights(manifest, words)
    places = _shared(weights) if SHARED_ROWS in weights.tensors else _at_sites(model, weights, bare)
    pieces = _pieces(places, wanted, largest, run)
    shapes = {name: (NAMES[tensor.dtype], list(tensor.shape)) for name, tensor in words.items()}
    least = least_bytes(manifest, shapes, largest)
    choice = chosen(pieces, wanted, least)
    tensors: dict[str, Tensor] = dict(words)
    sites, errors = [], 0.0
    for number, (each, option) in enumerate(zip(pieces, choice, strict=True)):
        stored = each.tensors(option, wanted.precision)
        site, error = _measured(each, option, stored)
        tensors |= stored
        sites.append(site)
        errors += error
        run.step("compress", len(pieces) + number + 1, 2 * len(pieces))
    smaller = ConceptWeights(manifest, tensors)
    options, total = [each.options for each in pieces], sum(each.energy for each in pieces)
    report = CompressionReport(
        criterion=wanted.criterion,
        value=wanted.value,
        precision=wanted.precision,
        bytes_before=before,
        bytes_after=len(smaller.to_bytes()),
        discarded_energy=_share(total - kept(options, choice), total),
        relative_error=sqrt(_share(errors, total)),
        sites=sites,
        one_rank=_with_one_rank(options, wanted, least, total),
        curve=_curve(options, before, least, total),
    )
    return Smaller(smaller, report)


def chosen(pieces: Sequence[Piece], wanted: Compression, least: int) -> list[int]:
    """An option of each piece. ``least``: bytes of the file without any. Raises `InputInvalid`."""
    match wanted.criterion:
        case "rank":
            rank = int(wanted.value)
            most = max((len(each.spectrum) for each in pieces if each.is_matrix), default=0)
            if not 1 <= rank <= most:
                raise InputInvalid(f"Rank {rank} is not possible: the changes have ranks from 1 to {most}.")
            return [each.options.at(rank) for each in pieces]
        case "nuclear":
            return [each.options.at(rank_for(each.spectrum, wanted.value)) for each in pieces]
        case "energy":
            return [each.options.at(rank_for(np.square(each.spectrum), wanted.value)) for each in pieces]
        case "token-only":
            return [0] * len(pieces)
        case "bytes":
            budget = int(wanted.value) - least
            if budget < 0:
                raise InputInvalid(
                    f"The words alone take {least} bytes; {int(wanted.value)} are not enough for them."
                )
            return allocate([each.options for each in pieces], budget)


def rank_for(values: np.ndarray[tuple[int], np.dtype[np.float64]], share: float) -> int:
    """Smallest r with ``sum of the first r values >= share * sum of all``; 0 where all are zero. ``values`` >= 0,
    largest first.
    """
    sums = np.cumsum(values)
    if not len(sums) or sums[-1] == 0.0:
        return 0
    return int(np.searchsorted(sums, share * sums[-1] * _NEAR_ONE, side="left")) + 1


Place = tuple[str, dict[str, Tensor], Held]
"""A change: what a report calls it, its tensors by their names in the file, and who reads them."""


def _at_sites(model: DiffusionModel, weights: ConceptWeights, bare: ConceptWeights) -> list[Place]:
    """Every change of the file, in the order of their names. ``bare``: the words under the new header."""
    found: list[Place] = []
    for of in ("site", "encoder"):
        for module, parts in weights.site_parts(of).items():
            prefix = f"{of}.{module}"
            held = AtSite(model, bare, prefix)
            beside = [part for part in parts if part.endswith("_delta")]
            matrix = {f"{prefix}.{part}": each for part, each in parts.items() if part not in beside}
            if matrix:
                found.append((prefix, matrix, held))
            found += [(f"{prefix}.{part}", {f"{prefix}.{part}": parts[part]}, held) for part in beside]
    return sorted(found, key=lambda place: place[0])


def _shared(weights: ConceptWeights) -> list[Place]:
    """All changes of a closed-form merge as one."""
    own = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith("token.")}
    outputs = {name: len(parts["values"]) for name, parts in sorted(weights.site_parts().items())}
    return [(EVERYWHERE, own, InSharedRows(outputs))]


def _pieces(places: Sequence[Place], wanted: Compression, largest: int, run: Run) -> list[Piece]:
    if not places:
        raise InputInvalid("These weights are words alone; nothing of them can be made smaller.")
    pieces = []
    for number, (site, own, held) in enumerate(places):
        pieces.append(piece(site, own, held, wanted.precision, largest))
        run.step("compress", number + 1, 2 * len(places))
    return pieces


def _measured(each: Piece, option: int, stored: dict[str, Tensor]) -> tuple[SiteCompression, float]:
    """What was kept, and the squared error of what is stored."""
    error = each.energy
    if stored:
        error = float((flat(each.held.read(each.own)) - flat(each.held.read(stored))).square().sum())
    form = each.form(option)
    rank = len(each.spectrum) if form == "whole" else option
    site = SiteCompression(
        site=each.site,
        shape=list(each.shape),
        full_rank=len(each.spectrum),
        rank=rank,
        form=form,
        bytes=int(each.options.sizes[option]),
        discarded_energy=_share(each.energy - float(each.options.kept[option]), each.energy),
        relative_error=sqrt(_share(error, each.energy)),
    )
    return site, error


def _with_one_rank(
    options: Sequence[Options], wanted: Compression, least: int, total: float
) -> SizeAndError | None:
    if wanted.criterion != "bytes":
        return None
    rank = one_rank(options, int(wanted.value) - least)
    choice = [each.at(rank) for each in options]
    return SizeAndError(bytes=least + size(options, choice), relative_error=_left(options, choice, total))


def _curve(options: Sequence[Options], before: int, least: int, total: float) -> list[SizeAndError]:
    points = [SizeAndError(bytes=least, relative_error=1.0 if total else 0.0)]
    for share in sorted(CURVE):
        if (budget := int(share * before) - least) > 0:
            choice = allocate(options, budget)
            points.append(
                SizeAndError(
                    bytes=least + size(options, choice), relative_error=_left(options, choice, total)
                )
            )
    return points


def _left(options: Sequence[Options], choice: Sequence[int], total: float) -> float:
    return sqrt(_share(total - kept(options, choice), total))


def _share(part: float, whole: float) -> float:
    return max(0.0, part) / whole if whole > 0.0 else 0.0


__all__ = ["Smaller", "chosen", "compress", "rank_for"]
