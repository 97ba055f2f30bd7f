"""Ways of putting concepts together: what is trained and merged for each, and which pictures it draws.

A way's name is a stem and what is added to it. Stems: ``average``, the mean of the changes as sequential averaging does
it; every merge of `worker.ml.merges`, ``linear`` the sum of the changes; ``regions``, a box for each concept, no merge;
``regions-apart``, with a pass for each box, and ``regions-stacked``, so with boxes one above the other;
``regions-joint`` and ``regions-apart-joint``, boxes with what one training of all learned
(``joint-collages-masked``); ``textual-inversion``, words alone in one prompt; ``joint``, one training of all;
``dreambooth-joint`` the same by DreamBooth. A joint training may have ``-collages``, which may be ``-masked`` (what is
around the subjects counts a tenth), or ``-unmix``. The others may
be of concepts taught another way (`SINGLES`): among ``-companions``, masked, or so by ``-lokr``, ``-lora`` or
``-orthogonal`` LoRA, each along columns of its own; merges that are made for one method are of that (`MADE_FOR`).
``-company``: merged with every word constrained behind the others as well. ``-guided``: drawn with attention guidance.
``-retried``: looked at as the studio does and drawn from another seed until all are there, four times at most; the
judge that chooses is the one that judges, so this row says what the remedy brings its user, not how good a way is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.methods import CARDS
from backend.services.method_params import checked
from benchmarks.grading import Bench
from benchmarks.targets import Taught
from worker.ml.concept_weights import ConceptWeights
from worker.ml.evaluation.measures import photo_pixels
from worker.ml.evaluation.presence import Sought, look
from worker.ml.merges import MERGES
from worker.ml.merges.base import MergeInput
from worker.ml.methods import METHODS
from worker.ml.regions import Box
from worker.ml.run import InProcessRun
from worker.ml.sampling.engine import GenerationUnit, RegionUnit, generate
from worker.ml.training.captions import with_article
from worker.ml.training.loop import train

BASE = "base"
SINGLE = "custom-diffusion"
MASKED: dict[str, Any] = {"unmasked_weight": 0.1}
COLLAGES: dict[str, Any] = {"collages": 0.6}
JOINT: dict[str, tuple[str, dict[str, Any]]] = {
    "joint": (SINGLE, {}),
    "joint-collages": (SINGLE, COLLAGES),
    "joint-collages-masked": (SINGLE, {**COLLAGES, **MASKED}),
    "joint-unmix": (SINGLE, {**COLLAGES, "unmix_weight": 1.0}),
    "dreambooth-joint": ("dreambooth", {}),
}
REGIONS_JOINT, OF_JOINT = {"regions-joint", "regions-apart-joint"}, "joint-collages-masked"
STACKED = "regions-stacked"
APART = {STACKED, "regions-apart", "regions-apart-joint"}
LEARNED_AS_ONE = {"textual-inversion", *REGIONS_JOINT, *JOINT}
"""What trains every concept with a word of its own."""
AMONG: dict[str, Any] = {"companions": 0.35, **MASKED}
SINGLES: dict[str, tuple[str, dict[str, Any]]] = {
    SINGLE: (SINGLE, {}),
    "companions": (SINGLE, AMONG),
    "lokr-companions": ("lokr", AMONG),
    "lora-companions": ("lora", AMONG),
    "orthogonal-companions": ("lora", {**AMONG, "basis": "orthogonal"}),
    "svdiff-companions": ("svdiff", {**AMONG, "text_encoder": False}),
    "perfusion": ("perfusion", {}),
    "dreambooth": ("dreambooth", {}),
}
"""Ways to teach a concept by itself: the method, and other parameters than the preset's."""
MADE_FOR = {"lora-svd": "lora", "svdiff-sum": "svdiff", "perfusion-gates": "perfusion"}
"""Merges of one method's weights alone."""
COLUMNS = 4
"""The rank of the presets' LoRA; every concept begins so far behind the one before it."""
GUIDANCE = 1.0
"""The paper's step (`worker.ml.sampling.attention_guidance`)."""
TRIES = 4
NEXT_TRY = 1000
"""Between the seeds of two tries."""


@dataclass(frozen=True)
class Way:
    """A name, taken apart."""

    stem: str
    single: str
    company: bool
    guided: bool
    retried: bool

    @staticmethod
    def of(name: str) -> Way:
        """Of what `benchmarks/experiments/pairs.json` says."""
        guided_or_not = name.removesuffix("-retried")
        plain = guided_or_not.removesuffix("-guided")
        rest = plain.removesuffix("-company")
        added = max((each for each in SINGLES if rest.endswith(f"-{each}")), key=len, default="")
        stem = rest.removesuffix(f"-{added}") if added else rest
        own = MADE_FOR.get(stem, "")
        return Way(
            stem,
            "-".join(filter(None, (own, added))) or SINGLE,
            rest != plain,
            plain != guided_or_not,
            guided_or_not != name,
        )


@dataclass
class Studio:
    """The bench, its subjects, and what was learned, kept in files of its work folder by name."""

    bench: Bench
    known: dict[str, Taught]
    loaded: dict[str, ConceptWeights] = field(default_factory=dict)
    of_base: dict[tuple[str, ...], Tensor] = field(default_factory=dict)

    def base_pictures(self, group: Sequence[Taught]) -> Tensor:
        """What the base draws of the group's class nouns; drawn once."""
        key = tuple(one.slug for one in group)
        if key not in self.of_base:
            self.of_base[key] = drawn(self, BASE, group)[0]
        return self.of_base[key]

    def is_new(self, one: Taught) -> bool:
        """Whether the base lacks the category of a subject."""
        return one.kind == "subject" and one.class_noun not in self.bench.model.description.class_nouns

    def called(self, one: Taught) -> str:
        """What a prompt says of a subject."""
        return with_article(one.class_noun) if self.is_new(one) else f"a <{one.slug}> {one.class_noun}"

    def prompt(self, group: Sequence[Taught], place: str, *, plain: bool = False) -> str:
        """All of the group somewhere, subjects before styles; ``plain``: class nouns alone, and no style."""
        subjects = [
            with_article(one.class_noun) if plain else self.called(one)
            for one in group
            if one.kind == "subject"
        ]
        styles = [one.target.own("in the style of {}") for one in group if one.kind == "style" and not plain]
        return " ".join(["a photo of", " and ".join(subjects), place, *styles])

    def learned(
        self, method: str, group: Sequence[Taught], name: str, changed: dict[str, Any]
    ) -> ConceptWeights:
        """One training of all of the group by the experiment's preset."""
        key = f"{name}--{'-'.join(one.slug for one in group)}"
        file = self.bench.work / "weights" / f"{key}.safetensors"
        if key not in self.loaded:
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                self._train(method, group, changed).save(file)
            self.loaded[key] = ConceptWeights.load(file)
        return self.loaded[key]

    def _train(self, method: str, group: Sequence[Taught], changed: dict[str, Any]) -> ConceptWeights:
        card, base, run = CARDS[method], self.bench.model.description, InProcessRun()
        params = card.params_type(**checked(card, base, self.bench.spec["preset"], changed, len(group)))
        trainee = METHODS[method].trainee(
            self.bench.model,
            [one.examples for one in group],
            params,
            seed=self.bench.spec["training_seed"],
            prior_dir=self.bench.work / "prior",
            previews=[],
            run=run,
        )
        return train(self.bench.model, [trainee], run)[0]

    def alone(self, one: Taught, single: str) -> ConceptWeights:
        """What one concept learned by itself."""
        method, changed = SINGLES[single]
        word = {"word": "class-noun"} if self.is_new(one) else {}
        columns = {"first_column": COLUMNS * list(self.known).index(one.slug)} if "basis" in changed else {}
        return self.learned(method, [one], single, {**changed, **word, **columns})

    def jointly(self, group: Sequence[Taught], name: str) -> ConceptWeights:
        """What one training of all learned."""
        method, changed = JOINT[name]
        return self.learned(method, group, name, changed)

    def merged(
        self, merge: str, group: Sequence[Taught], scale: float, single: str, changed: dict[str, Any]
    ) -> tuple[ConceptWeights, dict[str, Any]]:
        """The merge of what each taught by itself, and its report without the sites."""
        inputs = [MergeInput(one.slug, self.alone(one, single), scale) for one in group]
        made = MERGES[merge].merge(
            self.bench.model, inputs, MERGE_CARDS[merge].params_type(**changed), InProcessRun()
        )
        return made.weights, made.report.model_dump(mode="json", exclude={"sites"})


def drawn(studio: Studio, name: str, group: Sequence[Taught]) -> tuple[Tensor, dict[str, Any] | None]:
    """Every place with every seed: [n, 3, S, S] in [-1, 1], on the CPU; and the report of a merge."""
    units, report = units_of(studio, name, group)
    plains = [unit.text for unit in units_of(studio, BASE, group)[0]]
    if not Way.of(name).retried:
        return pixels_of(studio, units), report
    seen = [photo_pixels(one.photos, studio.bench.model.description.resolution) for one in group]
    features = [studio.bench.panel.subject_features(photos) for photos in seen]
    kept = []
    for unit, plain in zip(units, plains, strict=True):
        boxes: list[tuple[Box, ...]] = [(region.box,) for region in unit.regions] or [()] * len(group)
        sought = [Sought(photos, box) for photos, box in zip(features, boxes, strict=True)]
        kept.append(best_of(studio, unit, plain, sought))
    return torch.stack(kept), report


def best_of(studio: Studio, unit: GenerationUnit, plain: str, sought: Sequence[Sought]) -> Tensor:
    """The first of `TRIES` pictures with all there, else the one with the most (`worker.presence.draw_and_look`)."""
    best: tuple[int, Tensor] | None = None
    for attempt in range(TRIES):
        tried = replace(unit, index=0, seed=unit.seed + NEXT_TRY * attempt)
        base = replace(tried, index=1, text=plain, weights=(), regions=(), attention_guidance=0.0)
        picture, plainly = pixels_of(studio, [tried, base])
        found = look(studio.bench.panel, picture, plainly, sought)
        there = sum(each.state == "present" for each in found)
        if best is None or there > best[0]:
            best = there, picture
        if there == len(found):
            break
    assert best is not None
    return best[1]


def pixels_of(studio: Studio, units: Sequence[GenerationUnit]) -> Tensor:
    """[n, 3, S, S] in [-1, 1], by index."""
    found = {unit.index: pixels for unit, pixels in generate(studio.bench.model, units, InProcessRun())}
    ordered = np.stack([found[index] for index in range(len(units))])
    return torch.from_numpy(ordered).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def units_of(
    studio: Studio, name: str, group: Sequence[Taught]
) -> tuple[list[GenerationUnit], dict[str, Any] | None]:
    """What a way draws, with all that it has to learn and to merge before, and the report of its merge."""
    bench, way = studio.bench, Way.of(name)
    words = [studio.called(one) for one in group]
    report: dict[str, Any] | None = None
    weights: tuple[tuple[ConceptWeights, float], ...] = ()
    regions: list[tuple[str, Box, ConceptWeights]] = []
    if way.stem == "textual-inversion":
        weights = tuple((studio.learned(way.stem, [one], way.stem, {}), 1.0) for one in group)
    elif way.stem in {"regions", *REGIONS_JOINT, *APART}:
        for place, (one, word) in enumerate(zip(group, words, strict=True)):
            edge, side = place / len(group), 1.0 / len(group)
            box = Box(0.0, edge, 1.0, side) if way.stem == STACKED else Box(edge, 0.0, side, 1.0)
            own = (
                studio.jointly(group, OF_JOINT)
                if way.stem in REGIONS_JOINT
                else studio.alone(one, way.single)
            )
            regions.append((" and ".join([word] * (1 if way.stem in APART else len(group))), box, own))
    elif way.stem in JOINT:
        weights = ((studio.jointly(group, way.stem), 1.0),)
    elif way.stem != BASE:
        merge, scale = ("linear", 1.0 / len(group)) if way.stem == "average" else (way.stem, 1.0)
        changed = {"company": True} if way.company else {}
        learned, report = studio.merged(merge, group, scale, way.single, changed)
        weights = ((learned, 1.0),)
    defaults, side = bench.model.description.defaults, bench.model.description.resolution
    units = [
        GenerationUnit(
            index=index,
            text=f"a photo {place}" if way.stem in APART else studio.prompt(group, place, plain=not weights),
            negative_text="",
            seed=seed,
            num_inference_steps=bench.spec["num_inference_steps"],
            guidance_scale=defaults.guidance_scale,
            scheduler=defaults.scheduler,
            width=side,
            height=side,
            weights=weights,
            regions=tuple(
                RegionUnit(f"a photo of {text} {place}", box, ((own, 1.0),)) for text, box, own in regions
            ),
            attention_guidance=GUIDANCE if way.guided else 0.0,
            apart=way.stem in APART,
        )
        for index, (place, seed) in enumerate(
            (place, seed) for place in bench.spec["places"] for seed in bench.spec["image_seeds"]
        )
    ]
    return units, report
