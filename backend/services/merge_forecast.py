"""What a merge would be like, before it is made: from the sketches that the worker kept of each weights
(`worker/ml/merges/sketch.py`), in numpy, without the base model and without sampling.

For stacked whitened rows ``X = U Sigma Y^T`` and wanted changes R: ``drift_l^2 = ||R_l U Sigma^-1||_F^2`` (methods.md
6.2), which needs ``R_l^T R_l`` alone. The limits of the verdicts are first guesses, not yet measured against pictures.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.schemas.merges.requests import MergeForecast, PairForecast, SiteForecast, Verdict

Array = NDArray[np.float64]

DEPENDENT = 1e-5
"""Directions below this share of the strongest cannot be told from rounding: sketches are of single precision."""
LISTED_SITES = 8
GROWTH = (1.5, 3.0)
"""Drift of the merge against that of the worst of the weights alone: good up to the first, fair up to the second."""
CROSSTALK = (0.25, 1.0)
"""Likewise of two weights: how far they move each other's words, as a share of what was learned."""
NEARNESS = (0.9, 0.98)
"""Likewise cosine between two words' text states."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """As arrays, at a scale: ``rows`` X [s, d], ``words`` [w, d], ``grams`` [sites, s, s], ``projected`` [sites, k, s],
    ``norms`` [sites].
    """

    sites: list[str]
    tokens: list[str]
    rows: Array
    words: Array
    grams: Array
    projected: Array
    norms: Array

    @staticmethod
    def read(held: Mapping[str, Any], scale: float) -> Sketch:
        """``held`` as the worker wrote it. Changes are taken as proportional to the scale, words as at scale 1."""
        arrays = {
            name: _array(held[name]) for name in ("rows", "words", "grams", "projected", "sizes", "norms")
        }
        return Sketch(
            sites=list(held["sites"]),
            tokens=list(held["tokens"]),
            rows=arrays["rows"],
            words=arrays["words"],
            grams=arrays["grams"] * scale**2,
            projected=arrays["projected"] * arrays["sizes"][:, None, None] * scale,
            norms=arrays["norms"],
        )


def forecast(
    sketches: Sequence[Mapping[str, Any]], ids: Sequence[str], scales: Sequence[float]
) -> MergeForecast:
    """Of weights of one base, in their order. Raises `ValueError` where the sketches are of different bases."""
    if len({(held["base_hash"], tuple(held["sites"])) for held in sketches}) > 1:
        raise ValueError("The weights belong to different base models.")
    known = [Sketch.read(held, scale) for held, scale in zip(sketches, scales, strict=True)]
    drifts, condition, rank = _drifts(known)
    alone = [_drifts([each])[0] for each in known]
    pairs, by_site = [], np.zeros(len(drifts))
    for (first, one), (second, other) in combinations(zip(ids, known, strict=True), 2):
        crosstalk, sites = _crosstalk(one, other)
        by_site = np.maximum(by_site, sites)
        pairs.append(_pair(first, second, one, other, crosstalk))
    worst, worst_alone = float(drifts.max()), max(float(each.max()) for each in alone)
    growth = worst / worst_alone if worst_alone > 0 else 1.0
    rows = sum(len(each.rows) for each in known)
    verdict = _worst([_verdict(growth, GROWTH), *(pair.verdict for pair in pairs)])
    notes = [
        f"A scale of {scale:g} is taken as the same share of the change." for scale in scales if scale != 1.0
    ]
    if rank < rows:
        notes.append(
            f"{rows - rank} of {rows} text states are the same in several of the weights; words that were not taught a "
            "vector get one of their own in the merge, and the drift is then another."
        )
    order = np.argsort(-drifts)[:LISTED_SITES]
    return MergeForecast(
        verdict=verdict,
        sentence=_sentence(verdict, growth, worst),
        pairs=pairs,
        condition=condition,
        rank=rank,
        constraint_rows=rows,
        drift=worst,
        drift_alone=[float(each.max()) for each in alone],
        sites=[
            SiteForecast(site=known[0].sites[at], drift=float(drifts[at]), crosstalk=float(by_site[at]))
            for at in order
        ],
        notes=notes,
    )


def _drifts(known: Sequence[Sketch]) -> tuple[Array, float, int]:
    """(relative drift of each site, condition, rank) of the closed-form merge."""
    left, strengths, _ = np.linalg.svd(np.concatenate([each.rows for each in known]), full_matrices=False)
    strong = strengths > DEPENDENT * strengths[0]
    metric = left[:, strong] / strengths[strong]
    grams = _grams(known)
    squares = np.einsum("sr,lst,tr->l", metric, grams, metric)
    norms = known[0].norms
    drifts = np.sqrt(np.maximum(squares, 0.0)) / np.where(norms > 0, norms, 1.0)
    return drifts, float(strengths[0] / strengths[strong][-1]), int(strong.sum())


def _grams(known: Sequence[Sketch]) -> Array:
    """``R_l^T R_l`` of all together [sites, s, s]: exact within each of the weights, estimated between two."""
    projected = np.concatenate([each.projected for each in known], axis=2)
    grams: Array = np.einsum("lks,lkt->lst", projected, projected)
    at = 0
    for each in known:
        end = at + len(each.rows)
        grams[:, at:end, at:end] = each.grams
        at = end
    return grams


def _crosstalk(one: Sketch, other: Sketch) -> tuple[float, Array]:
    """(over all sites, of each site): what each adds to the other's words, against what these learned."""
    sums, shares = [], []
    for mover, moved in ((one, other), (other, one)):
        read = np.linalg.pinv(mover.rows, rcond=DEPENDENT).T @ moved.rows.T
        added = np.einsum("st,lsu,ut->l", read, mover.grams, read)
        learned = np.einsum("lss->l", moved.grams)
        sums.append(_root_share(added.sum(), learned.sum()))
        shares.append(np.array([_root_share(a, b) for a, b in zip(added, learned, strict=True)]))
    return max(sums), np.maximum(*shares)


def _root_share(part: float, whole: float) -> float:
    return float(np.sqrt(max(part, 0.0) / whole)) if whole > 0 else 0.0


def _pair(first: str, second: str, one: Sketch, other: Sketch, crosstalk: float) -> PairForecast:
    units = [words / np.linalg.norm(words, axis=1, keepdims=True) for words in (one.words, other.words)]
    cosine = float((units[0] @ units[1].T).max())
    spaces = [_row_space(each.rows) for each in (one, other)]
    overlap = float(np.square(spaces[0] @ spaces[1].T).sum() / len(spaces[0]))
    verdict = _worst([_verdict(crosstalk, CROSSTALK), _verdict(cosine, NEARNESS)])
    told = {
        "good": "They hardly touch each other's words.",
        "fair": "They pull at each other's words: merge them in closed form, do not simply add them.",
        "poor": "They use nearly the same text for different things: one may take over the other.",
    }[verdict]
    return PairForecast(
        first=first,
        second=second,
        verdict=verdict,
        sentence=told,
        token_cosine=cosine,
        overlap=min(overlap, 1.0),
        crosstalk=crosstalk,
    )


def _row_space(rows: Array) -> Array:
    _, strengths, right = np.linalg.svd(rows, full_matrices=False)
    space: Array = right[strengths > DEPENDENT * strengths[0]]
    return space


def _verdict(value: float, limits: tuple[float, float]) -> Verdict:
    return "good" if value <= limits[0] else "fair" if value <= limits[1] else "poor"


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("good", "fair", "poor")
    return max(verdicts, key=order.index)


def _sentence(verdict: Verdict, growth: float, drift: float) -> str:
    moved = f"Other texts would move by up to {drift:.1%}, {growth:.1f} times as far as with the worst of them alone."
    told = {
        "good": "These go together well.",
        "fair": "These can be merged, with some cost to other texts or to one another.",
        "poor": "These are unlikely to go together well.",
    }[verdict]
    return f"{told} {moved}"


def _array(held: Mapping[str, Any]) -> Array:
    if held["dtype"] not in ("<f2", "<f4"):
        raise ValueError("A sketch holds numbers of a type that is not known here.")
    flat = np.frombuffer(base64.b64decode(held["data"]), dtype=np.dtype(held["dtype"]))
    return flat.reshape(held["shape"]).astype(np.float64)
