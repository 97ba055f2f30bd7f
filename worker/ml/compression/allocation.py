"""Who gets how many bytes: ranks for many sites from one budget, greedily by kept energy per byte (methods.md 7).

A site offers *options*: nothing, its first component, its first two, ..., perhaps the matrix itself. Each has a size
and keeps a part of the energy, the sum of squared singular values. Sites' energies add, so the best choice under a
budget is a knapsack with one option a site.

The greedy choice goes, again and again, to the option with the most energy per further byte that still fits. Where
options lie on their concave hull it follows the hulls of all sites in order of their slopes, and so is the optimum for
every budget at which a step of it ends (exchange argument); between two such budgets it is short of the optimum by at
most the energy of one step. Since one rank for all sites is one of the choices, and the better of the two is taken, it
is never worse than that.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Options:
    """``sizes`` (bytes) and ``kept`` (energy), both ascending, [m]; the first is nothing: 0 and 0. Option k holds k
    components; the last may hold everything.
    """

    sizes: NDArray[np.int64]
    kept: NDArray[np.float64]

    @property
    def last(self) -> int:
        return len(self.sizes) - 1

    def at(self, rank: int) -> int:
        """The option with so many components; a site that has fewer gives all it has."""
        return min(rank, self.last)


def one_rank(sites: Sequence[Options], budget: int) -> int:
    """The largest rank that all sites can have within ``budget`` bytes; 0 where not even rank 1 fits."""
    most = max((site.last for site in sites), default=0)
    rank = 0
    while rank < most and sum(int(site.sizes[site.at(rank + 1)]) for site in sites) <= budget:
        rank += 1
    return rank


def allocate(sites: Sequence[Options], budget: int) -> list[int]:
    """An option of each site, together of at most ``budget`` >= 0 bytes."""
    chosen = _greedy(sites, budget)
    rank = one_rank(sites, budget)
    same = [site.at(rank) for site in sites]
    return max(chosen, same, key=lambda choice: kept(sites, choice))


def kept(sites: Sequence[Options], choice: Sequence[int]) -> float:
    """Energy that a choice keeps."""
    return float(sum(site.kept[option] for site, option in zip(sites, choice, strict=True)))


def size(sites: Sequence[Options], choice: Sequence[int]) -> int:
    """Bytes that a choice takes."""
    return sum(int(site.sizes[option]) for site, option in zip(sites, choice, strict=True))


def _greedy(sites: Sequence[Options], budget: int) -> list[int]:
    chosen, left = [0] * len(sites), budget
    queue: list[tuple[float, int, int]] = []

    def offer(number: int) -> None:
        if (found := _best_step(sites[number], chosen[number], left)) is not None:
            heapq.heappush(queue, (-found[0], number, found[1]))

    for number in range(len(sites)):
        offer(number)
    while queue:
        _, number, option = heapq.heappop(queue)
        further = int(sites[number].sizes[option] - sites[number].sizes[chosen[number]])
        if further <= left:
            chosen[number], left = option, left - further
        offer(number)  # the next step, or a smaller one where this no longer fits
    return chosen


def _best_step(site: Options, now: int, left: int) -> tuple[float, int] | None:
    """Energy per byte, and the option, of the best step from ``now`` that takes at most ``left`` further bytes."""
    sizes, energies = site.sizes[now + 1 :] - site.sizes[now], site.kept[now + 1 :] - site.kept[now]
    fits = int(np.searchsorted(sizes, left, side="right"))
    if fits == 0:
        return None
    slopes = energies[:fits] / sizes[:fits]
    best = int(np.argmax(slopes))
    return (float(slopes[best]), now + 1 + best) if slopes[best] > 0 else None
