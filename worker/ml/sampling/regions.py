"""Regions of a batch of pictures: one pass of the denoiser where their concepts are text side, and one pass more for
every installation where they are weight side, whose predictions are blended by mask. (`worker.ml.sampling.apart` draws
boxes that no such pass could fill.)

A blend of predictions: ``p = (1 - sum_I w_I) p_base + sum_I w_I p_I`` on the latents' own grid, with
``w_I = sum over the regions r of I of (1-a) m_r`` (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113, section 4.2,
with the base picture as one more window; masks and share as in `worker.ml.regions`). Within the pass of ``I`` the
first of its regions is the prompt of the whole picture, and further ones are regions with share 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.ml.conditioning import Conditioning, Prompt, acting_edits
from worker.ml.installation import Installation, Prepared, Untouched
from worker.ml.placeholders import placeholders
from worker.ml.regions import BaseShare, Box, Place, Regions

if TYPE_CHECKING:
    from worker.ml.families.base import DiffusionModel
    from worker.ml.sampling.latents import ConditioningCache, Picture


@dataclass(frozen=True)
class RegionPrompt:
    """What is drawn inside ``box``. ``installation`` is what its weight-side concepts need."""

    prompt: Prompt
    negative: Prompt
    box: Box
    installation: Installation = ()


def further_installations(picture: Picture) -> tuple[Installation, ...]:
    """What the regions need installed that the picture has not, each once: so many passes more."""
    return tuple(
        dict.fromkeys(
            region.installation
            for region in picture.regions
            if region.installation not in ((), picture.installation)
        )
    )


def all_prompts(picture: Picture) -> dict[Installation, list[Prompt]]:
    """Every text that drawing a picture reads, by what is installed then."""
    read: dict[Installation, list[Prompt]] = {picture.installation: []}
    drawn: list[Picture | RegionPrompt] = [picture, *picture.regions]
    for each in drawn:
        place = each.installation or picture.installation
        texts = [each.prompt, each.negative] if picture.guided else [each.prompt]
        read.setdefault(place, []).extend(texts)
    return read


def conditioned(model: DiffusionModel, batch: Sequence[Picture], cache: ConditioningCache) -> Conditioning:
    """Rows of the batch, negative ones first where it is guided, with the regions that one pass can do. What
    ``batch`` has installed is in place.
    """
    installation = batch[0].installation
    own = [
        [region for region in picture.regions if region.installation in ((), installation)]
        if not picture.apart
        else []
        for picture in batch
    ]
    drawn = _Pass(batch, [(each.prompt, each.negative) for each in batch], own)
    return _conditioning(drawn, lambda prompts: cache.rows(model, prompts, installation))


@dataclass(frozen=True)
class _Pass:
    """One pass of a batch: picture i reads ``texts[i]``, prompt and negative, and has ``regions[i]``. ``share``: that
    of each picture where None is given.
    """

    batch: Sequence[Picture]
    texts: Sequence[tuple[Prompt, Prompt]]
    regions: Sequence[Sequence[RegionPrompt]]
    share: BaseShare | None = None


def _conditioning(drawn: _Pass, projected: Callable[[Sequence[Prompt]], Conditioning]) -> Conditioning:
    """A region's negative text is left out where it says the same as its row's."""
    batch, texts, regions, share = drawn.batch, drawn.texts, drawn.regions, drawn.share
    guided, count = batch[0].guided, len(batch)
    prompts = [negative for _, negative in texts] * guided + [prompt for prompt, _ in texts]
    inside: list[Prompt] = []
    rows: list[int] = []
    places: list[Place] = []
    for row, whole in enumerate(prompts):
        picture = batch[row % count]
        boxes = tuple(region.box for region in picture.regions)
        for region in regions[row % count]:
            prompt = region.negative if row < count * guided else region.prompt
            if row < count * guided and _says_the_same(prompt, whole):
                continue
            inside.append(prompt)
            rows.append(row)
            places.append(Place(region.box, boxes, share or picture.share))
    if not inside:
        return projected(prompts)
    regional = Regions(projected(inside).kv, tuple(rows), tuple(places))
    return replace(projected(prompts), regions=regional)


def _says_the_same(one: Prompt, other: Prompt) -> bool:
    """Whether two prompts have the same keys and values: the same text, changed by the same edits."""

    def changed(prompt: Prompt) -> list[tuple[int, float]]:
        return [(id(edit), scale) for edit, scale in acting_edits(prompt) if edit.sites or edit.gated]

    return one.text == other.text and not placeholders(one.text) and changed(one) == changed(other)


class FurtherPasses:
    """The passes of a batch for what its regions need installed. Made before the batch's own installation is in
    place; the pictures of a batch need the same.
    """

    def __init__(self, model: DiffusionModel, batch: Sequence[Picture]) -> None:
        self._model, self._batch = model, batch
        self._needs = further_installations(batch[0])
        self._untouched = Untouched(model.denoiser, model.text_encoder) if self._needs else None
        self._prepared = [Prepared(model, each) for each in self._needs]
        self._conditioning: list[Conditioning] = []

    def condition(self, cache: ConditioningCache) -> None:
        """Compute the keys and values of every pass."""
        for place, installation in enumerate(self._needs):
            own = [
                [region for region in picture.regions if region.installation == installation]
                for picture in self._batch
            ]
            texts = [(regions[0].prompt, regions[0].negative) for regions in own]
            drawn = _Pass(self._batch, texts, [regions[1:] for regions in own], BaseShare(0.0, 0.0))
            projected = partial(cache.rows, self._model, installation=installation)
            with self._in_place(place):
                self._conditioning.append(_conditioning(drawn, projected))

    def keep(self, index: Sequence[int], both: Sequence[int]) -> None:
        """From now on only pictures ``index`` of the batch; ``both`` are their rows, negative ones first."""
        self._batch = [self._batch[row] for row in index]
        self._conditioning = [each.rows(both) for each in self._conditioning]

    def blended(self, predicted: Tensor, scaled: Tensor, t: Tensor, progress: float) -> Tensor:
        """``predicted`` [B, C, h, w] of the batch's own pass with the other passes' predictions inside their boxes."""
        if not self._needs:
            return predicted
        size = (predicted.shape[-2], predicted.shape[-1])
        whole = torch.zeros_like(predicted[:, :1])
        inside = torch.zeros_like(predicted)
        for place, installation in enumerate(self._needs):
            with self._in_place(place):
                other = self._model.predict(scaled, t, self._conditioning[place].at(progress)).float()
            weight = torch.stack([_weight(each, installation, size, progress) for each in self._batch])
            weight = weight[:, None].repeat(len(predicted) // len(self._batch), 1, 1, 1).to(predicted)
            whole, inside = whole + weight, inside + weight * other
        return (1.0 - whole) * predicted + inside

    @contextmanager
    def _in_place(self, place: int) -> Iterator[None]:
        assert self._untouched is not None
        with self._untouched.in_place(), self._prepared[place].in_place():
            yield


def _weight(picture: Picture, installation: Installation, size: tuple[int, int], progress: float) -> Tensor:
    """``w_I`` [h, w]."""
    boxes = tuple(region.box for region in picture.regions)
    own = [
        Place(region.box, boxes, picture.share).mask(size)
        for region in picture.regions
        if region.installation == installation
    ]
    return (1.0 - picture.share.at(progress)) * torch.stack(own).sum(0)
