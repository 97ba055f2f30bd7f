"""Generations: the pictures of one job, or of several that share calls of the denoiser (decision 8).

Files in, files out: weights are read from the job's inputs, pictures written into its staging and told at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.schemas.executor import Succeeded
from backend.schemas.generations import ActingWeights, GenerateSpec, GuidedAttention
from backend.schemas.presence import Presence
from worker import device
from worker.executor import Ended, JobStopped
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families import DiffusionModel
from worker.ml.methods import with_gate
from worker.ml.regions import USUAL_SHARE, BaseShare, Box
from worker.ml.run import Run
from worker.ml.sampling.engine import GenerationUnit, RegionUnit, Weighed, draw, generate, pictures
from worker.ml.sampling.latents import ConditioningCache, Picture
from worker.pipe_run import PHASES, Reporter
from worker.recipes import acting, image_recipe, png_chunks, taught_tokens


def draw_alone(model: DiffusionModel, reporter: Reporter, run: Run) -> Succeeded:
    """All pictures of the job that are not drawn yet."""
    order = Order(reporter)
    for unit, pixels in generate(model, order.units(), run):
        order.keep(unit, pixels)
    return order.succeeded()


def draw_together(model: DiffusionModel, reporters: Sequence[Reporter], ended: Ended) -> None:
    """Several jobs; ``ended`` as in `worker.executor.Handlers`. A job that cannot be prepared, or whose pictures
    cannot be kept, is left out: done alone it fails with its own error. A fault that spoils the device is raised,
    and so is whatever happens in the call that is shared.
    """
    cache = ConditioningCache()
    orders: list[Order] = []
    for reporter in reporters:
        try:
            order = Order(reporter)
            order.prepare(model, cache)
        except Exception as error:
            if (fault := device.classify(error)) is not None and fault.sticky:
                raise
            device.log.warning("job %s is done alone: %s", reporter.job.job, type(error).__name__)
        else:
            orders.append(order)
    company = Company(orders, ended)
    for place, pixels in draw(model, company.pictures, company, cache=cache):
        company.drawn(place, pixels)


@dataclass
class Order:
    """The pictures that one job asks for, and how far they are."""

    reporter: Reporter
    spec: GenerateSpec = field(init=False)
    wanted: list[GenerationUnit] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    steps: dict[int, int] = field(default_factory=dict)
    over: bool = False

    def __post_init__(self) -> None:
        self.spec = GenerateSpec.model_validate(self.reporter.job.spec)

    def units(self) -> list[GenerationUnit]:
        """Raises WeightsInvalid."""
        spec, inputs = self.spec, self.reporter.job.inputs
        loaded = {
            used.file.id: ConceptWeights.load(Path(inputs[used.file.storage_key])) for used in spec.weights
        }
        chosen: dict[str, tuple[ConceptWeights, float]] = {}

        def weighed(choices: Sequence[ActingWeights]) -> Weighed:
            """One object for each choice: equal ones share what is computed of them."""
            for choice in choices:
                key = choice.model_dump_json()
                chosen.setdefault(key, (with_gate(loaded[choice.id], choice.gate), choice.scale))
            return tuple(chosen[choice.model_dump_json()] for choice in choices)

        layout = spec.layout
        weights = weighed(layout.whole if layout else acting(spec))
        regions = tuple(
            RegionUnit(each.text, Box(each.x, each.y, each.width, each.height), weighed(each.weights))
            for each in (layout.regions if layout else ())
        )
        share = BaseShare(layout.base_share, layout.late_base_share) if layout else USUAL_SHARE
        attended = None
        if spec.attention_concepts:
            words = taught_tokens(spec)
            attended = tuple(words[one] for one in spec.attention_concepts if one in words)
        return [
            GenerationUnit(
                index=index,
                text=spec.text,
                negative_text=spec.negative_prompt,
                seed=(spec.seed + index) % 2**32,
                num_inference_steps=spec.num_inference_steps,
                guidance_scale=spec.guidance_scale,
                scheduler=spec.scheduler,
                width=spec.width,
                height=spec.height,
                weights=weights,
                regions=regions,
                share=share,
                attention_guidance=spec.attention_guidance,
                apart=layout is not None and layout.passes == "each",
                attended=attended,
            )
            for index in range(spec.num_images)
            if index not in self.reporter.drawn
        ]

    def prepare(self, model: DiffusionModel, cache: ConditioningCache) -> None:
        """Everything that can be wrong with this job alone goes wrong here."""
        self.wanted = self.units()
        self.pictures = pictures(model, self.wanted, cache)

    def keep(
        self,
        unit: GenerationUnit,
        pixels: NDArray[np.uint8],
        presence: Sequence[Presence] = (),
        attention: GuidedAttention | None = None,
    ) -> None:
        """Write and tell a finished picture; ``attention`` where it is not what the spec says. Raises OSError."""
        file = self.reporter.staging / f"image-{unit.index}.png"
        recipe = image_recipe(self.spec, unit.index, unit.seed, presence, attention)
        Image.fromarray(pixels).save(file, pnginfo=png_chunks(recipe))
        self.reporter.image(unit.index, unit.seed, file, presence, attention)

    def succeeded(self) -> Succeeded:
        return Succeeded(**self.reporter.tag, files={}, report={}, peak_memory_bytes=device.peak_bytes())


class Company:
    """The pictures of several orders in one row, and a `Watch` over them: each order is asked for itself whether it
    shall stop.
    """

    def __init__(self, orders: Sequence[Order], ended: Ended) -> None:
        self._ended = ended
        self._of = [(order, own) for order in orders for own in range(len(order.pictures))]
        self.pictures = [order.pictures[own] for order, own in self._of]
        for order in orders:
            if not order.pictures:
                self._end(order, order.succeeded())

    def wanted(self, place: int) -> bool:
        return not self._of[place][0].over

    def stepped(self, places: Sequence[int], step: int) -> None:
        for order, own in (self._of[place] for place in places):
            order.steps[own] = max(step, order.steps.get(own, 0))
        for order in {id(order): order for order, _ in (self._of[place] for place in places)}.values():
            total = sum(picture.num_inference_steps for picture in order.pictures)
            order.reporter.progress(PHASES["images"], sum(order.steps.values()), total)
            if (asked := order.reporter.asked) is not None and not order.over:
                self._end(order, JobStopped("released" if asked == "release" else "cancelled"))

    def halved(self, size: int) -> None:
        for order in {id(order): order for order, _ in self._of if not order.over}.values():
            order.reporter.note(
                "memory_short", f"The device is short of memory: {size} at once are drawn now."
            )

    def drawn(self, place: int, pixels: NDArray[np.uint8]) -> None:
        """A picture is finished; with its last one the order is."""
        order, own = self._of[place]
        if order.over:
            return
        try:
            order.keep(order.wanted[own], pixels)
        except Exception as error:
            device.log.warning("job %s is done alone: %s", order.reporter.job.job, type(error).__name__)
            order.over = True
            return
        if all(unit.index in order.reporter.drawn for unit in order.wanted):
            self._end(order, order.succeeded())

    def _end(self, order: Order, outcome: Succeeded | JobStopped) -> None:
        order.over = True
        self._ended(order.reporter, outcome)
