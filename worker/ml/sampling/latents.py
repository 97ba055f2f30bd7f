"""From prompts to latents: classifier-free guidance on a batch whose rows need have nothing in common but
their size.

Each picture has a CPU generator of its own and keys and values computed from its own texts alone, so it
depends on its own recipe: within 2/255 in fp32 whatever its neighbours (what remains is the rounding of
matrix products of another height).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.ml.conditioning import Conditioning, Prompt, StatesCache, text_kv
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import Installation, installed
from worker.ml.run import Run
from worker.ml.sampling.schedulers import SCHEDULERS, build_scheduler

CELLS_PER_BATCH = {"cpu": 4 * 256, "cuda": 16 * 4096}
"""Latent cells denoised at once where the caller does not say: 4 pictures of 64 px on a CPU, 16 of 512 px on
a GPU.
"""


@dataclass(frozen=True)
class Picture:
    """Recipe of one picture with resolved edits. Sizes in pixels; ``seed`` draws the first noise;
    ``installation`` is in place while it is drawn.
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


def sample_latents(
    model: DiffusionModel,
    pictures: Sequence[Picture],
    run: Run,
    unit: str,
    *,
    batch_size: int | None = None,
    cache: ConditioningCache | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yields (place in ``pictures``, latents [C, h, w] fp32) as batches finish, in the order of the first of
    each kind.

    ``run.step`` is called after every solver step, counting picture-steps. Raises what `Run.step` raises,
    `InputInvalid`, `PromptTooLong`.
    """
    for picture in pictures:
        _check(model, picture)
    cache = ConditioningCache() if cache is None else cache
    kinds: dict[tuple[object, ...], list[int]] = {}
    for place, picture in enumerate(pictures):
        kinds.setdefault(picture.shares_batch_with(), []).append(place)
    total = sum(picture.num_inference_steps for picture in pictures)
    done = 0
    for places in kinds.values():
        size = batch_size or default_batch_size(model, pictures[places[0]])
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            finished = torch.empty(0)
            # Closed again before anything is yielded: what a caller does in between finds the base model.
            with installed(model, pictures[chosen[0]].installation):
                for latents in _solve(model, [pictures[place] for place in chosen], cache):
                    done += len(chosen)
                    run.step(unit, done, total)
                    finished = latents
            yield from zip(chosen, finished, strict=True)


def default_batch_size(model: DiffusionModel, picture: Picture) -> int:
    """Pictures of a size that are denoised at once where the caller does not say: `CELLS_PER_BATCH`."""
    cells = (picture.width // model.cell) * (picture.height // model.cell)
    return max(1, CELLS_PER_BATCH.get(model.device.type, CELLS_PER_BATCH["cpu"]) // cells)


def first_noise(model: DiffusionModel, picture: Picture) -> Tensor:
    """N(0, 1) of shape [C, h, w] from the picture's own CPU generator: the same numbers on any device."""
    generator = torch.Generator("cpu").manual_seed(picture.seed)
    shape = (model.latent_channels, picture.height // model.cell, picture.width // model.cell)
    return torch.randn(shape, generator=generator)


def _check(model: DiffusionModel, picture: Picture) -> None:
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


def _solve(model: DiffusionModel, batch: Sequence[Picture], cache: ConditioningCache) -> Iterator[Tensor]:
    """Yields the latents [B, C, h, w] after each solver step; the last are the result.

    Guidance: ``n + w (p - n)`` with p and n the predictions for prompt and negative prompt (Ho & Salimans
    2022, eq. 6 in the parametrisation where w = 1 is no guidance).
    """
    # Gradient mode is set per step and not around the yields: a generator must not leak it into its caller.
    with torch.no_grad():
        scheduler = build_scheduler(batch[0].scheduler, model.scheduler_config, batch[0].num_inference_steps)
        prompts = [picture.prompt for picture in batch]
        if batch[0].guided:
            prompts = [picture.negative for picture in batch] + prompts
        conditioning = cache.rows(model, prompts, batch[0].installation)
        scale = torch.tensor([picture.guidance_scale for picture in batch], device=model.device)[
            :, None, None, None
        ]
        noise = torch.stack([first_noise(model, picture) for picture in batch]).to(model.device)
        latents = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        with torch.no_grad():
            scaled = scheduler.scale_model_input(torch.cat([latents] * 2) if batch[0].guided else latents, t)
            predicted = model.predict(scaled, t.to(model.device), conditioning).float()
            if batch[0].guided:
                negative, positive = predicted.chunk(2)
                predicted = negative + scale * (positive - negative)
            latents = scheduler.step(predicted, t, latents, return_dict=False)[0]
        yield latents
