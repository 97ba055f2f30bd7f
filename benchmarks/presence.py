"""Who is in a picture of several: judges look at crops, on scales that are anchored by pictures of known content.

Crops are the narrowest windows of `worker.ml.evaluation.presence`; a thing is where the judge sees it best. A *class*
is there where a crop is read as its noun among all nouns of the base, with a chance of `READ` at least. A *subject* is
there where a crop lies nearer to true photos of it, put side by side with another subject's, than to what the base
draws of its class: on a scale whose 0 is the mean best crop of the base's own pictures of the nouns and whose 1 is that
of true photos side by side, half way. All are there when each is, at places of their own, so that
one chimera does not count twice (`worker.ml.evaluation.places`).

A subject in a *style* is looked for in whole pictures (`styled`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from worker.ml.evaluation.panel import Panel
from worker.ml.evaluation.places import assigned, far_apart, middles_of
from worker.ml.evaluation.presence import SIDES, crop, windows
from worker.ml.training.captions import with_article

NARROW = min(SIDES)
HALF = 0.5
READ = 0.25
SHARPNESS = 20.0
"""What the contrastive judge's cosines are multiplied with before nouns compete (its own learned scale is near)."""

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class SeenAs:
    """True pictures [n, 3, S, S] in [-1, 1]: those that taught a thing, and others."""

    photos: Tensor
    reference: Tensor


def crops(pixels: Tensor) -> tuple[Tensor, NDArray[np.float64]]:
    """[n, 3, S, S] -> crops [n, c, 3, S, S], enlarged to the picture's size, and their middles [c, 2] in [0, 1]."""
    side = pixels.shape[-1]
    boxes = [box for box in windows() if box.width == NARROW]
    cut = [
        interpolate(torch.cat([crop(one, box) for one in pixels]), size=(side, side), mode="bilinear")
        for box in boxes
    ]
    return torch.stack(cut, dim=1), middles_of(boxes)


def class_scores(panel: Panel, pixels: Tensor, nouns: Sequence[str], wanted: Sequence[str]) -> Scores:
    """Chance of each wanted noun among all in every crop, 0 where another is likelier: [n, crops, wanted]."""
    cut, _ = crops(pixels)
    texts = panel.text_features([f"a photo of {with_article(noun)}" for noun in nouns])
    seen = panel.image_text_features(cut.flatten(0, 1))
    chances = torch.softmax(SHARPNESS * seen @ texts.T, dim=1)
    best = chances.where(chances == chances.amax(dim=1, keepdim=True), torch.zeros(()))
    chosen = best[:, [list(nouns).index(noun) for noun in wanted]]
    return chosen.reshape(len(pixels), -1, len(wanted)).numpy()


def subject_scores(panel: Panel, pixels: Tensor, features: Sequence[Tensor]) -> Scores:
    """Mean cosine of every crop with the photos of each subject ([photos, d] each): [n, crops, subjects]."""
    cut, _ = crops(pixels)
    seen = panel.subject_features(cut.flatten(0, 1))
    scores = torch.stack([(seen @ photos.T).mean(dim=1) for photos in features], dim=1)
    return scores.reshape(len(pixels), -1, len(features)).numpy()


def side_by_side(photos: Sequence[Tensor]) -> Tensor:
    """Square photos [3, S, S] in equal columns of one picture [3, S, S], each whole, on the mean of its border."""
    side = photos[0].shape[-1]
    width = side // len(photos)
    columns = []
    for photo in photos:
        small = interpolate(photo[None], size=(width, width), mode="bilinear", antialias=True)[0]
        edge = torch.cat([small[:, 0], small[:, -1]], dim=1).mean(dim=1)
        column = edge[:, None, None].expand(3, side, width).clone()
        top = (side - width) // 2
        column[:, top : top + width] = small
        columns.append(column)
    whole = torch.cat(columns, dim=2)
    return torch.cat([whole, whole[:, :, -1:].expand(3, side, side - whole.shape[2])], dim=2)


@dataclass(frozen=True)
class Verdict:
    """Of n pictures: whether each of the things is there [n, k], and whether all are, at places of their own [n]."""

    each: NDArray[np.bool_]
    together: NDArray[np.bool_]


def verdict(scores: Scores, thresholds: Sequence[float], middles: NDArray[np.float64]) -> Verdict:
    """From scores [n, crops, k]; a thing is there where its best crop reaches its threshold."""
    bounds = np.asarray(thresholds)
    each = scores.max(axis=1) >= bounds
    apart = far_apart(middles, middles)
    together = np.array([None not in assigned(picture - bounds, apart) for picture in scores])
    return Verdict(each, each.all(axis=1) & together)


def styled(
    panel: Panel,
    pixels: Tensor,
    base: Tensor,
    things: tuple[SeenAs, SeenAs],
    manner: Callable[[Tensor], Tensor],
) -> Verdict:
    """Whether a subject and a style (``things``) are there in whole pictures [n, 3, S, S].

    A style is there where a picture lies at least half way from the base's of the class noun, and from true photos of
    the subject, to those photos in the ``manner`` of the style, by the features that judge a style alone too
    (`worker.ml.evaluation.measures`). A style takes colours and shades away; so a subject is there where it is on
    either of two scales: that of photos, or that of photos in the manner, whose 0 is the base's pictures in it.
    """
    subject, style = things
    by_subject, by_text = panel.subject_features, panel.image_text_features
    photos, reference = manner(subject.photos), manner(subject.reference)
    plain = _half_way(by_subject, pixels, subject.photos, [base], subject.reference)
    drawn = _half_way(by_subject, pixels, photos, [manner(base)], reference)
    shown = _half_way(by_text, pixels, style.photos, [base, subject.reference], reference)
    each = np.stack([plain | drawn, shown], axis=1)
    return Verdict(each, np.logical_and(each[:, 0], each[:, 1]))


def _half_way(
    features: Callable[[Tensor], Tensor],
    pixels: Tensor,
    photos: Tensor,
    zeros: Sequence[Tensor],
    one: Tensor,
) -> NDArray[np.bool_]:
    """Which of the pictures lie at least half way from the nearest of ``zeros`` to ``one``, by their mean cosine with
    the photos.
    """
    known = features(photos)

    def near(pictures: Tensor) -> NDArray[np.float32]:
        found: NDArray[np.float32] = (features(pictures) @ known.T).mean(dim=1).numpy()
        return found

    low, high = max(near(each).mean() for each in zeros), near(one).mean()
    there: NDArray[np.bool_] = np.greater_equal(near(pixels), low + HALF * (high - low))
    return there
