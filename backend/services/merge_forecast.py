"""What the chosen merge would be like, before it is made, from the sketches of the weights (`merge_sketches`): without
the base model and without sampling. Each merge is spoken of by what is true of it; of one that no sketch tells
anything, that is said. The limits of the verdicts are first guesses, not yet measured against pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import acos, pi, sqrt
from typing import Any

import numpy as np

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.merges.requests import MergeForecast, PairForecast, SiteForecast, Verdict
from backend.services import merge_sketches, sketched_settings
from backend.services.merge_sketches import Array, Sketch

LISTED_SITES = 8
GROWTH = (1.5, 3.0)
"""Drift of the merge against that of the worst of the weights alone: good up to the first, fair up to the second."""
CROSSTALK = (0.25, 1.0)
"""Likewise of two weights: how far they move each other's words, as a share of what was learned."""
NEARNESS = (0.9, 0.98)
"""Likewise cosine between two words' text states."""
OPPOSITION = (0.1, 0.5)
"""Likewise of two changes that pull against one another: the cosine between them, its sign turned."""
BEYOND_RANK = (0.05, 0.3)
"""Likewise the share of what was learned that a rank cannot hold."""
MISSED = (0.1, 0.5)
"""Likewise the share of what was learned that is given up in the worst layer."""
RIDGE_OF_HOLD = 2e-4
"""Up to this share the ridge of gradient fusion hardly moves what holding does: drift is right within some percent."""
LIKELY = {
    "good": "These go together well.",
    "fair": "These can be merged, with some cost to other texts or to one another.",
    "poor": "These are unlikely to go together well.",
}
NOT_APART = {
    "good": "They hardly touch each other's words.",
    "fair": "They pull at each other's words: merge them in closed form, do not simply add them.",
    "poor": "They use nearly the same text for different things: one may take over the other.",
}
ALIKE = {
    "good": "Their words read apart.",
    "fair": "Their words read alike.",
    "poor": NOT_APART["poor"],
}


@dataclass(frozen=True, eq=False)
class Two:
    """Two of the weights: where they stand among all, and what their sketches say of them."""

    at: tuple[int, int]
    nearness: float
    overlap: float
    crosstalk: float
    by_site: Array
    agreement: float

    @property
    def sign_conflict(self) -> float:
        """Share of the places where both pull in opposite directions, were their numbers normally distributed."""
        return acos(self.agreement) / pi

    def sign_conflicts(self, by_site: Array) -> Array:
        """The same of each site, 0 where only one of them changes anything."""
        i, j = self.at
        return np.array(
            [
                acos(merge_sketches.agreement(each, i, j)) / pi if each[i, i] > 0 and each[j, j] > 0 else 0.0
                for each in by_site
            ]
        )


@dataclass(frozen=True, eq=False)
class Meeting:
    """Weights that are to be merged, in their order."""

    ids: Sequence[str]
    known: Sequence[Sketch]
    scales: Sequence[float]
    params: Mapping[str, Any]
    method: str
    by_site: Array
    """`merge_sketches.alignments_by_site`"""
    twos: Sequence[Two]

    @property
    def products(self) -> Array:
        """Of all sites together, [n, n]."""
        whole: Array = self.by_site.sum(axis=0)
        return whole

    def pairs(self, judged: Callable[[Two], Verdict], words: Mapping[str, str]) -> list[PairForecast]:
        """Every two with a verdict, in ``words`` by it."""
        return [
            PairForecast(
                first=self.ids[two.at[0]],
                second=self.ids[two.at[1]],
                verdict=judged(two),
                sentence=words[judged(two)],
                token_cosine=two.nearness,
                overlap=two.overlap,
                crosstalk=two.crosstalk,
                agreement=two.agreement,
                sign_conflict=two.sign_conflict,
            )
            for two in self.twos
        ]

    def notes(self, *further: str) -> list[str]:
        told = (
            f"A scale of {s:g} is taken as the same share of the change." for s in self.scales if s != 1.0
        )
        return [*told, *further]


def forecast(
    method: str,
    params: Mapping[str, Any],
    sketches: Sequence[Mapping[str, Any]],
    ids: Sequence[str],
    scales: Sequence[float],
) -> MergeForecast:
    """Of a merge with these parameters, of weights of one base in their order. Raises `ValueError` where the sketches
    are of different bases.
    """
    known = merge_sketches.read_all(sketches, scales)
    aligned = merge_sketches.alignments_by_site(known)
    products = aligned.sum(axis=0)
    twos = []
    for (i, one), (j, other) in combinations(enumerate(known), 2):
        crosstalk, by_site = merge_sketches.crosstalk(one, other)
        near, shared = merge_sketches.nearness(one, other), merge_sketches.overlap(one, other)
        agreement = merge_sketches.agreement(products, i, j)
        twos.append(Two((i, j), near, shared, crosstalk, by_site, agreement))
    meeting = Meeting(ids, known, scales, params, method, aligned, twos)
    return SPEAKERS.get(method, _unknown)(meeting)


def _closed_form(meeting: Meeting) -> MergeForecast:
    known, tolerance = meeting.known, float(meeting.params.get("tolerance", 0.0))
    drifts, condition, rank = merge_sketches.drifts(known, tolerance)
    alone = [float(merge_sketches.drifts([each], tolerance)[0].max()) for each in known]
    worst, worst_alone = float(drifts.max()), max(alone)
    growth = worst / worst_alone if worst_alone > 0 else 1.0
    pairs = meeting.pairs(_of_sum, NOT_APART)
    verdict = _worst([_verdict(growth, GROWTH), *(pair.verdict for pair in pairs)])
    rows = sum(len(each.rows) for each in known)
    fewer = (
        f"{rows - rank} of {rows} text states are the same in several of the weights; words that were not taught a "
        "vector get one of their own in the merge, and the drift is then another."
    )
    if tolerance > merge_sketches.DEPENDENT:
        fewer = (
            f"{rows - rank} of {rows} directions are weaker than the tolerance and are dropped: there words do not "
            "keep what they learned, and the merge may not pass its verification."
        )
    by_site = _worst_sites(meeting)
    return MergeForecast(
        merge=meeting.method,
        verdict=verdict,
        sentence=f"{LIKELY[verdict]} Other texts would move by up to {worst:.1%}, {growth:.1f} times as far as with "
        "the worst of them alone.",
        pairs=pairs,
        condition=condition,
        rank=rank,
        constraint_rows=rows,
        drift=worst,
        drift_alone=alone,
        sites=[
            SiteForecast(site=known[0].sites[at], drift=float(drifts[at]), crosstalk=float(by_site[at]))
            for at in np.argsort(-drifts)[:LISTED_SITES]
        ],
        notes=meeting.notes(*sketched_settings.notes(meeting.params), *([fewer] if rank < rows else [])),
    )


def _sum(meeting: Meeting, *further: str, also: Verdict = "good") -> MergeForecast:
    """``further``: what else is to be known; ``also``: another verdict on the whole."""
    pairs = meeting.pairs(_of_sum, NOT_APART)
    verdict = _worst([also, *(pair.verdict for pair in pairs)])
    most = max((two.crosstalk for two in meeting.twos), default=0.0)
    lost, by_site = merge_sketches.cancelled(meeting.products), _worst_sites(meeting)
    return MergeForecast(
        merge=meeting.method,
        verdict=verdict,
        sentence=f"{LIKELY[verdict]} Added up, one moves another's words by up to {most:.0%} of what these learned, "
        "and nothing keeps them apart.",
        pairs=pairs,
        cancelled=lost,
        sites=[
            SiteForecast(site=meeting.known[0].sites[at], crosstalk=float(by_site[at]))
            for at in np.argsort(-by_site)[:LISTED_SITES]
        ],
        notes=meeting.notes(*further, "How far other texts move is not forecast of a sum."),
    )


def _svdiff_sum(meeting: Meeting) -> MergeForecast:
    return _sum(
        meeting, "Where a singular value would fall below zero it stays there, and the sum is then another."
    )


def _lora_svd(meeting: Meeting) -> MergeForecast:
    rank = int(meeting.params["rank"])
    if not rank:
        return _sum(meeting, "Nothing is cut off: the result has all ranks together.")
    lost = merge_sketches.beyond_rank(meeting.known, rank)
    told = _sum(
        meeting,
        f"Of what the words learned, about {lost:.0%} or more is beyond any change of rank {rank}.",
        also=_verdict(lost, BEYOND_RANK),
    )
    return told.model_copy(update={"beyond_rank": lost})


def _ties(meeting: Meeting, *further: str) -> MergeForecast:
    def judged(two: Two) -> Verdict:
        return _worst([_verdict(two.nearness, NEARNESS), _verdict(-two.agreement, OPPOSITION)])

    pairs = meeting.pairs(
        judged,
        {
            "good": "They do not pull against one another.",
            "fair": "Their words read alike, or they pull against one another at places.",
            "poor": "They want opposite things, or use nearly the same text for different things.",
        },
    )
    verdict = _worst([pair.verdict for pair in pairs])
    most = max((two.sign_conflict for two in meeting.twos), default=0.0)
    by_site = np.zeros(len(meeting.known[0].sites))
    for two in meeting.twos:
        by_site = np.maximum(by_site, two.sign_conflicts(meeting.by_site))
    return MergeForecast(
        merge=meeting.method,
        verdict=verdict,
        sentence=f"{LIKELY[verdict]} Where two have a number in one place, about {most:.0%} have opposite signs "
        "(50% by chance), and only one of them stays.",
        pairs=pairs,
        cancelled=merge_sketches.cancelled(meeting.products),
        sites=[
            SiteForecast(site=meeting.known[0].sites[at], sign_conflict=float(by_site[at]))
            for at in np.argsort(-by_site)[:LISTED_SITES]
            if by_site[at] > 0
        ],
        notes=meeting.notes(
            *further,
            "Opposite signs of a single layer are estimated from few numbers: by some points they may be more or less.",
            "How much of each is left after the vote, only its pictures say.",
        ),
    )


def _dare(meeting: Meeting) -> MergeForecast:
    drop = float(meeting.params["drop"])
    noise = (
        f"This holds on average. What is dropped at random adds noise to each change, {sqrt(drop / (1 - drop)):.1f} "
        "times as large as the change itself, and what it does is not forecast."
    )
    spoken = _ties if meeting.params["then"] == "ties" else _sum
    return spoken(meeting, *([noise] if drop else []))


def _gates(meeting: Meeting) -> MergeForecast:
    pairs = meeting.pairs(_of_words, ALIKE)
    verdict = _worst([pair.verdict for pair in pairs])
    told = {
        "good": "These go together well. Every word keeps its own gate, and the words read apart.",
        "fair": "These can be merged. Every word keeps its own gate, but words that read alike open each other's.",
        "poor": "These are unlikely to go together well. The words read so alike that they open each other's gates.",
    }
    return MergeForecast(
        merge=meeting.method,
        verdict=verdict,
        sentence=told[verdict],
        pairs=pairs,
        notes=meeting.notes(
            "Pictures are the same as with the separate files in one prompt.",
            "A gate reads the text, which is the same for all layers: none is more responsible than another.",
        ),
    )


def _fusion(meeting: Meeting) -> MergeForecast:
    """Of weights that change keys and values of text alone, as all that have a sketch do: what is fitted is known."""
    known, hold, ridge = meeting.known, float(meeting.params["hold"]), float(meeting.params["ridge"])
    settings = sketched_settings.notes(meeting.params, ("captions",))
    if not hold:
        return _silent(meeting, "nothing is held, so how far other texts move lies in what no word says")
    if not merge_sketches.fusion_weight(known):
        return _silent(meeting, "one of these was made by an earlier version, without what it takes")
    if ridge > RIDGE_OF_HOLD * hold:
        return _silent(meeting, "so little is held that the ridge decides how far other texts move")
    drifts, missed = merge_sketches.fused(known, hold)
    alone = [float(merge_sketches.fused([each], hold)[0].max()) for each in known]
    worst, lost = float(drifts.max()), float(missed.max())
    growth = worst / max(alone) if max(alone) > 0 else 1.0
    pairs = meeting.pairs(_of_words, ALIKE)
    verdict = _worst([_verdict(growth, GROWTH), _verdict(lost, MISSED), *(pair.verdict for pair in pairs)])
    return MergeForecast(
        merge=meeting.method,
        verdict=verdict,
        sentence=f"{LIKELY[verdict]} {lost:.1%} of what the words learned would be missing in the worst layer; other "
        f"texts would move by up to {worst:.1%}, {growth:.1f} times as far as with the worst of them alone.",
        pairs=pairs,
        drift=worst,
        drift_alone=alone,
        missed=lost,
        sites=[
            SiteForecast(site=known[0].sites[at], drift=float(drifts[at]), missed=float(missed[at]))
            for at in np.argsort(-drifts)[:LISTED_SITES]
        ],
        notes=meeting.notes(*settings),
    )


def _silent(meeting: Meeting, why: str) -> MergeForecast:
    """Of a merge that the sketches cannot foresee."""
    title = MERGE_CARDS[meeting.method].title
    return MergeForecast(
        merge=meeting.method,
        verdict=None,
        sentence=f"{title} is not forecast: {why}. What is said of the words holds whatever merge is chosen.",
        pairs=meeting.pairs(_of_words, ALIKE),
        notes=meeting.notes("No layer can be named."),
    )


def _unknown(meeting: Meeting) -> MergeForecast:
    return _silent(meeting, "what it depends on was not kept of these weights")


SPEAKERS: dict[str, Callable[[Meeting], MergeForecast]] = {
    "closed-form": _closed_form,
    "linear": _sum,
    "ties": _ties,
    "dare": _dare,
    "svdiff-sum": _svdiff_sum,
    "lora-svd": _lora_svd,
    "perfusion-gates": _gates,
    "gradient-fusion": _fusion,
}
"""What is true of each merge; of others the sketches say nothing but how their words read."""


def _of_sum(two: Two) -> Verdict:
    return _worst([_verdict(two.crosstalk, CROSSTALK), _of_words(two)])


def _of_words(two: Two) -> Verdict:
    return _verdict(two.nearness, NEARNESS)


def _worst_sites(meeting: Meeting) -> Array:
    """The largest crosstalk of any two at each site."""
    found = np.zeros(len(meeting.known[0].sites))
    for two in meeting.twos:
        found = np.maximum(found, two.by_site)
    return found


def _verdict(value: float, limits: tuple[float, float]) -> Verdict:
    return "good" if value <= limits[0] else "fair" if value <= limits[1] else "poor"


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("good", "fair", "poor")
    return max(verdicts, key=order.index, default="good")
