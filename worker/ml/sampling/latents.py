"""From prompts to latents: classifier-free guidance on a batch whose rows need have nothing in common but
their size.

Each picture has a CPU generator of its own and keys and values computed from its own texts alone, so it
depends on its own recipe: within 2/255 in fp32 whatever its neighbours (what remains is the rounding of
matrix products of another height).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from worker.ml.conditioning import Conditioning, Prompt, StatesCache, text_kv
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import Installation, installed
from worker.ml.regions import USUAL_SHARE, BaseShare
from worker.ml.run import Run
from worker.ml.sampling.apart import ApartPasses
from worker.ml.sampling.attention_guidance import AttentionGuidance, moved
from worker.ml.sampling.regions import FurtherPasses, RegionPrompt, conditioned, further_installations
from worker.ml.sampling.schedulers import SCHEDULERS, build_scheduler, keep_rows

CELLS_PER_BATCH = {"cpu": 4 * 256, "cuda": 16 * 4096}
"""Latent cells denoised at once where the caller does not say: 4 pictures of 64 px on a CPU, 16 of 512 px on
a GPU.
"""


@dataclass(frozen=True)
class Picture:
    """Recipe of one picture with resolved edits. Sizes in pixels; ``seed`` draws the first noise;
    ``installation`` is in place while it is drawn; ``share`` is what ``prompt`` keeps inside the boxes of ``regions``.
    ``attention`` and regions exclude one another. ``apart``: every region is drawn by a pass of its own
    (`worker.ml.sampling.apart`).
    """

    prompt: Prompt
    negative: Prompt
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    installation: Installation = ()
    regions: tuple[RegionPrompt, ...] = ()
    share: BaseShare = USUAL_SHARE
    attention: AttentionGuidance | None = None
    apart: bool = False

    @property
    def guided(self) -> bool:
        """At scale 1 guidance is the conditional prediction itself."""
        return self.guidance_scale != 1.0

    def shares_batch_with(self) -> tuple[object, ...]:
        return (
            self.num_inference_steps,
            self.scheduler,
            self.width,
            self.height,
            self.guided,
            self.installation,
            further_installations(self),
            tuple(region.installation for region in self.regions) if self.apart else None,
        )


@dataclass
class ConditioningCache:
    """Keys and values by prompt: computed once however many pictures share it. Lives as long as its caller
    wants.
    """

    states: dict[Installation, StatesCache] = field(default_factory=dict)
    ready: dict[tuple[Installation, Prompt], Conditioning] = field(default_factory=dict)

    def rows(
        self, model: DiffusionModel, prompts: Sequence[Prompt], installation: Installation = ()
    ) -> Conditioning:
        """``installation`` is what the model has installed now: text states and projections depend on it."""
        states = self.states.setdefault(installation, {})
        for prompt in prompts:
            if (installation, prompt) not in self.ready:
                self.ready[installation, prompt] = text_kv(model, [prompt], cache=states)
        distinct = list(dict.fromkeys(prompts))
        place = {prompt: row for row, prompt in enumerate(distinct)}
        joined = Conditioning.concatenated([self.ready[installation, prompt] for prompt in distinct])
        return joined.rows([place[prompt] for prompt in prompts])


class Watch(Protocol):
    """Who waits for the pictures of a batch; they may be several people. Places count the pictures given."""

    def wanted(self, place: int) -> bool:
        """Asked before every step: a picture that nobody wants any more leaves the batch."""

    def stepped(self, places: Sequence[int], step: int) -> None:
        """Solver step ``step`` (from 1) is made for these pictures. What it raises ends everything."""

    def halved(self, size: int) -> None:
        """The device is too small; from now on at most ``size`` pictures are drawn at once."""


class RunWatch:
    """All pictures are for one `Run`, whose ``step`` counts picture-steps."""

    def __init__(self, run: Run, unit: str, pictures: Sequence[Picture]) -> None:
        self._run, self._unit = run, unit
        self._total = sum(picture.num_inference_steps for picture in pictures)
        self._done: dict[int, int] = {}

    def wanted(self, place: int) -> bool:
        return True

    def stepped(self, places: Sequence[int], step: int) -> None:
        for place in places:
            self._done[place] = max(step, self._done.get(place, 0))
        self._run.step(self._unit, sum(self._done.values()), self._total)

    def halved(self, size: int) -> None:
        told = "The device has too little memory for so many pictures at once; fewer are drawn at a time."
        self._run.note("memory_short", told)


def sample_latents(
    model: DiffusionModel,
    pictures: Sequence[Picture],
    run: Run,
    unit: str,
    *,
    batch_size: int | None = None,
    cache: ConditioningCache | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """`watched_latents` for one run: ``run.step`` is called after every solver step."""
    watch = RunWatch(run, unit, pictures)
    return watched_latents(model, pictures, watch, batch_size=batch_size, cache=cache)


def watched_latents(
    model: DiffusionModel,
    pictures: Sequence[Picture],
    watch: Watch,
    *,
    batch_size: int | None = None,
    cache: ConditioningCache | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yields (place in ``pictures``, latents [C, h, w] fp32) as batches finish, in the order of the first of
    each kind; pictures that are no longer wanted are left out.

    A batch that does not fit into the device's memory is drawn again in halves, down to one picture; then
    OutOfMemoryError. Raises what ``watch.stepped`` raises, `InputInvalid`, `PromptTooLong`.
    """
    for picture in pictures:
        check(model, picture)
    cache = ConditioningCache() if cache is None else cache
    kinds: dict[tuple[object, ...], list[int]] = {}
    for place, picture in enumerate(pictures):
        kinds.setdefault(picture.shares_batch_with(), []).append(place)
    for places in kinds.values():
        waiting = places
        size = batch_size or default_batch_size(model, pictures[places[0]])
        while waiting := [place for place in waiting if watch.wanted(place)]:
            chosen = waiting[:size]
            try:
                finished = _solved(model, pictures, chosen, watch, cache)
            except torch.OutOfMemoryError:
                if len(chosen) == 1:
                    raise
                finished = None
            if (
                finished is None
            ):  # behind the handler the traceback no longer holds the tensors that did not fit
                size = (len(chosen) + 1) // 2
                if torch.accelerator.is_available():
                    torch.accelerator.empty_cache()
                watch.halved(size)
                continue
            waiting = waiting[size:]
            yield from finished


def _solved(
    model: DiffusionModel,
    pictures: Sequence[Picture],
    chosen: Sequence[int],
    watch: Watch,
    cache: ConditioningCache,
) -> list[tuple[int, Tensor]]:
    """(place, latents) of those that were wanted to the end. What must be installed is removed on return: what a
    caller does in between finds the base model.
    """
    batch = [pictures[place] for place in chosen]
    finished: list[tuple[int, Tensor]] = []
    further = ApartPasses(model, batch) if batch[0].apart else FurtherPasses(model, batch)
    with installed(model, batch[0].installation):
        steps = _solve(model, batch, cache, further, lambda row: watch.wanted(chosen[row]))
        for step, (rows, latents) in enumerate(steps, 1):
            places = [chosen[row] for row in rows]
            watch.stepped(places, step)
            finished = list(zip(places, latents, strict=True)) if step == batch[0].num_inference_steps else []
    return finished


def default_batch_size(model: DiffusionModel, picture: Picture) -> int:
    """Pictures of a size that are denoised at once where the caller does not say: `CELLS_PER_BATCH`."""
    cells = (picture.width // model.cell) * (picture.height // model.cell)
    return max(1, CELLS_PER_BATCH.get(model.device.type, CELLS_PER_BATCH["cpu"]) // cells)


def first_noise(model: DiffusionModel, picture: Picture) -> Tensor:
    """N(0, 1) of shape [C, h, w] from the picture's own CPU generator: the same numbers on any device."""
    generator = torch.Generator("cpu").manual_seed(picture.seed)
    shape = (model.latent_channels, picture.height // model.cell, picture.width // model.cell)
    return torch.randn(shape, generator=generator)


def check(model: DiffusionModel, picture: Picture) -> None:
    """Raises `InputInvalid` for a size, scheduler, number of steps or attention guidance that the model does not do."""
    description = model.description
    for side in (picture.width, picture.height):
        if side % description.size_multiple or not 0 < side <= description.max_size:
            raise InputInvalid(
                f"{picture.width} x {picture.height} does not work with {description.title}: sides are multiples of "
                f"{description.size_multiple} up to {description.max_size} pixels."
            )
    if picture.scheduler not in SCHEDULERS:
        raise InputInvalid(f"There is no scheduler {picture.scheduler}.")
    if picture.num_inference_steps < 1:
        raise InputInvalid("A picture needs at least one step.")
    if picture.attention is not None and picture.regions:
        raise InputInvalid(
            "Attention is not guided in a picture with boxes: they say already where concepts stand."
        )
    if picture.attention is not None and not picture.attention.words:
        raise InputInvalid("The prompt names no subject that attention could be guided to.")


def _solve(
    model: DiffusionModel,
    batch: Sequence[Picture],
    cache: ConditioningCache,
    further: FurtherPasses | ApartPasses,
    wanted: Callable[[int], bool],
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields (rows of the batch that are wanted, their latents [rows, C, h, w]) after each solver step; the last
    are the result. Ends when no row is wanted.

    Guidance: ``n + w (p - n)`` with p and n the predictions for prompt and negative prompt (Ho & Salimans
    2022, eq. 6 in the parametrisation where w = 1 is no guidance).
    """
    guided = batch[0].guided
    rows = list(range(len(batch)))
    # Gradient mode is set per step and not around the yields: a generator must not leak it into its caller.
    with torch.no_grad():
        scheduler = build_scheduler(batch[0].scheduler, model.scheduler_config, batch[0].num_inference_steps)
        conditioning = conditioned(model, batch, cache)
        further.condition(cache)
        scale = torch.tensor([picture.guidance_scale for picture in batch], device=model.device)[
            :, None, None, None
        ]
        noise = torch.stack([first_noise(model, picture) for picture in batch]).to(model.device)
        latents = noise * scheduler.init_noise_sigma
    last = max(1, len(scheduler.timesteps) - 1)
    for step, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            kept = [row for row in rows if wanted(row)]
            if not kept:
                return
            if kept != rows:
                index = [rows.index(row) for row in kept]
                both = index + [len(rows) + place for place in index] if guided else index
                latents, scale, conditioning = latents[index], scale[index], conditioning.rows(both)
                further.keep(index, both)
                keep_rows(scheduler, index)
                rows = kept
            at, progress = t.to(model.device), step / last
            asked = [batch[row].attention for row in rows]
            latents = moved(
                model, scheduler, latents, t, conditioning=conditioning, asked=asked, progress=progress
            )
            scaled = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
            predicted = model.predict(scaled, at, conditioning.at(progress)).float()
            predicted = further.blended(predicted, scaled, at, progress)
            if guided:
                negative, positive = predicted.chunk(2)
                predicted = negative + scale * (positive - negative)
            latents = scheduler.step(predicted, t, latents, return_dict=False)[0]
        yield rows, latents
