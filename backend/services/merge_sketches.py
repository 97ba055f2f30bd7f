"""The sketches that the worker kept of weights (`worker/ml/merges/sketch.py`), and what numpy reads from several of
them without the base model: how far the closed form moves captions, what changes do to one another's words, whether
they pull in one direction, and what a low rank cannot hold.

For stacked whitened rows ``X = U Sigma Y^T`` and wanted changes R: ``drift_l^2 = ||R_l U Sigma^-1||_F^2`` (methods.md
6.2), which needs ``R_l^T R_l`` alone. Of each weights the least change that does what was learned at its own words is
``E = R (X^+)^T``; what its whole change does to texts that its words do not span, no sketch knows.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DEPENDENT = 1e-5
"""Directions below this share of the strongest cannot be told from rounding: sketches are of single precision."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """As arrays, at a scale: ``rows`` X [s, d], ``words`` [w, d], ``grams`` [sites, s, s], ``projected`` [sites, k, s],
    ``norms`` [sites], ``weight`` of the words' states against the captions' (squared); None in sketches of earlier
    versions.
    """

    sites: list[str]
    tokens: list[str]
    rows: Array
    words: Array
    grams: Array
    projected: Array
    norms: Array
    weight: float | None = None

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
            weight=held.get("weight"),
        )


def read_all(sketches: Sequence[Mapping[str, Any]], scales: Sequence[float]) -> list[Sketch]:
    """Raises `ValueError` where the sketches are of different bases."""
    if len({(held["base_hash"], tuple(held["sites"])) for held in sketches}) > 1:
        raise ValueError("The weights belong to different base models.")
    return [Sketch.read(held, scale) for held, scale in zip(sketches, scales, strict=True)]


def drifts(known: Sequence[Sketch], tolerance: float = 0.0) -> tuple[Array, float, int]:
    """(relative drift of each site, condition, rank) of the closed-form merge, which drops directions below
    ``tolerance`` of the strongest; here at least those below `DEPENDENT`.
    """
    left, strengths, _ = np.linalg.svd(np.concatenate([each.rows for each in known]), full_matrices=False)
    strong = strengths > max(DEPENDENT, tolerance) * strengths[0]
    metric = left[:, strong] / strengths[strong]
    squares = np.einsum("sr,lst,tr->l", metric, _grams(known), metric)
    found = np.sqrt(np.maximum(squares, 0.0)) / _lengths(known[0])
    return found, float(strengths[0] / strengths[strong][-1]), int(strong.sum())


def fused(known: Sequence[Sketch], hold: float) -> tuple[Array, Array]:
    """(relative drift, share of what was learned that is missing) of each site by gradient fusion, ``D = R X (X^T X +
    h I)^-1`` in the whitened space with h of `fusion_weight` > 0, its ridge left out. ``X = U Sigma Y^T``: the drift is
    ``||R U Sigma / (Sigma^2 + h)||_F``, what is missing ``||R (I - U Sigma^2 / (Sigma^2 + h) U^T)||_F``.
    """
    left, strengths, _ = np.linalg.svd(np.concatenate([each.rows for each in known]), full_matrices=False)
    held, grams = fusion_weight(known) * hold, _grams(known)
    moved = left * (strengths / (strengths**2 + held))
    kept = np.eye(len(left)) - (left * (strengths**2 / (strengths**2 + held))) @ left.T
    drift = np.sqrt(np.maximum(np.einsum("sr,lst,tr->l", moved, grams, moved), 0.0)) / _lengths(known[0])
    lost, learned = np.einsum("sr,lst,tr->l", kept, grams, kept), np.einsum("lss->l", grams)
    return drift, np.array([_root_share(part, whole) for part, whole in zip(lost, learned, strict=True)])


def fusion_weight(known: Sequence[Sketch]) -> float:
    """How much all words together weigh against the captions: what 1 of `GradientFusionParams.hold` is in the whitened
    space. 0 where a sketch does not say.
    """
    weights = [each.weight for each in known]
    return 0.0 if any(each is None for each in weights) else float(sum(each or 0.0 for each in weights))


def crosstalk(one: Sketch, other: Sketch) -> tuple[float, Array]:
    """(over all sites, of each site): what each adds to the other's words, against what these learned."""
    sums, shares = [], []
    for mover, moved in ((one, other), (other, one)):
        read = np.linalg.pinv(mover.rows, rcond=DEPENDENT).T @ moved.rows.T
        added = np.einsum("st,lsu,ut->l", read, mover.grams, read)
        learned = np.einsum("lss->l", moved.grams)
        sums.append(_root_share(added.sum(), learned.sum()))
        shares.append(np.array([_root_share(a, b) for a, b in zip(added, learned, strict=True)]))
    return max(sums), np.maximum(*shares)


def nearness(one: Sketch, other: Sketch) -> float:
    """Cosine of the two words whose text states are nearest."""
    units = [words / np.linalg.norm(words, axis=1, keepdims=True) for words in (one.words, other.words)]
    return float((units[0] @ units[1].T).max())


def overlap(one: Sketch, other: Sketch) -> float:
    """Mean squared cosine of the principal angles between the text directions of both, 0..1."""
    spaces = [_row_space(each.rows) for each in (one, other)]
    return min(float(np.square(spaces[0] @ spaces[1].T).sum() / len(spaces[0])), 1.0)


def alignments_by_site(known: Sequence[Sketch]) -> Array:
    """<E_i, E_j> [sites, n, n], each against the size of the site's captions' keys or values: exact on the diagonal,
    estimated beside it.
    """
    inverses = [np.linalg.pinv(each.rows, rcond=DEPENDENT) for each in known]
    found = np.zeros((len(known[0].sites), len(known), len(known)))
    weights = 1.0 / np.square(_lengths(known[0]))
    for i, one in enumerate(known):
        for j, other in enumerate(known):
            grams = one.grams if i == j else np.einsum("lks,lkt->lst", one.projected, other.projected)
            found[:, i, j] = np.einsum("l,lst,st->l", weights, grams, inverses[i].T @ inverses[j])
    return found


def agreement(products: Array, i: int, j: int) -> float:
    """Cosine of two changes, -1..1, from products [n, n] of `alignments_by_site`, of a site or of all; 0 where one of
    them changes nothing.
    """
    sizes = products[i, i] * products[j, j]
    return float(np.clip(products[i, j] / np.sqrt(sizes), -1.0, 1.0)) if sizes > 0 else 0.0


def cancelled(products: Array) -> float:
    """Share of the squared size of all changes that their sum has lost because they pull against one another, 0..1."""
    apart = float(np.trace(products))
    return float(np.clip(1.0 - products.sum() / apart, 0.0, 1.0)) if apart > 0 else 0.0


def beyond_rank(known: Sequence[Sketch], rank: int) -> float:
    """Share of the squared size of what all words learned that no change of this rank can do, 0..1: the whole's
    singular values behind the rank-th at each site (Eckart and Young 1936), from the projections.
    """
    values = np.linalg.svd(np.concatenate([each.projected for each in known], axis=2), compute_uv=False)
    whole = float(np.square(values).sum())
    return float(np.square(values[:, rank:]).sum()) / whole if whole > 0 else 0.0


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


def _lengths(sketch: Sketch) -> Array:
    """Size of the captions' keys or values at each site; 1 where it is nothing."""
    return np.where(sketch.norms > 0, sketch.norms, 1.0)


def _root_share(part: float, whole: float) -> float:
    return float(np.sqrt(max(part, 0.0) / whole)) if whole > 0 else 0.0


def _row_space(rows: Array) -> Array:
    _, strengths, right = np.linalg.svd(rows, full_matrices=False)
    space: Array = right[strengths > DEPENDENT * strengths[0]]
    return space


def _array(held: Mapping[str, Any]) -> Array:
    if held["dtype"] not in ("<f2", "<f4"):
        raise ValueError("A sketch holds numbers of a type that is not known here.")
    flat = np.frombuffer(base64.b64decode(held["data"]), dtype=np.dtype(held["dtype"]))
    return flat.reshape(held["shape"]).astype(np.float64)
