"""Concepts together: who is there when two or three share a prompt, by every way of putting them together.

Ways: ``average``, the mean of the changes as sequential averaging does it; ``closed-form`` and ``gradient-fusion``,
merges; ``regions``, a box for each concept and no merge; ``textual-inversion``, words alone in one prompt; ``joint``,
one training of all, with collages (``joint-collages``) and Unmix (``joint-unmix``); ``dreambooth-joint`` the same by
DreamBooth; ``...-companions``, of concepts that were taught among companions; ``...-guided``, drawn with attention
guidance; ``...-company``, merged with every word constrained behind the others as well. Beside them the base model
with the class nouns, whose own rate of showing all nouns is the yardstick.
A category that the base lacks (the moongate) is taught and called by its plain name; it has no joint training here,
because one training has one kind of word.
Presence: `benchmarks.presence`. One result file per (way, group), so that the run resumes; ``--only`` names ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.methods import CARDS
from backend.services.method_params import checked
from benchmarks.environment import environment
from benchmarks.grading import Bench, labelled, save_sheet, strip, write_json
from benchmarks.presence import (
    HALF,
    READ,
    Verdict,
    class_scores,
    crops,
    side_by_side,
    subject_scores,
    verdict,
)
from benchmarks.targets import Taught, listed
from worker.ml.concept_weights import ConceptWeights
from worker.ml.evaluation import protocol
from worker.ml.evaluation.measures import photo_pixels
from worker.ml.merges import MERGES
from worker.ml.merges.base import MergeInput
from worker.ml.methods import METHODS
from worker.ml.regions import Box
from worker.ml.run import InProcessRun
from worker.ml.sampling.engine import GenerationUnit, RegionUnit, generate
from worker.ml.training.captions import with_article
from worker.ml.training.loop import train

BASE, TRUE = "base", "photos side by side"
SINGLE = "custom-diffusion"
JOINT: dict[str, tuple[str, dict[str, Any]]] = {
    "joint": (SINGLE, {}),
    "joint-collages": (SINGLE, {"collages": 0.6}),
    "joint-unmix": (SINGLE, {"collages": 0.6, "unmix_weight": 1.0}),
    "dreambooth-joint": ("dreambooth", {}),
}
LEARNED_AS_ONE = {"textual-inversion", *JOINT}
"""What trains every concept with a word of its own."""
SINGLES: dict[str, dict[str, Any]] = {SINGLE: {}, "companions": {"companions": 0.35}}
"""Two ways to teach a concept by itself, with other parameters than the preset's."""
GUIDANCE = 1.0
"""The paper's step (`worker.ml.sampling.attention_guidance`)."""
SHOWN = 6


@dataclass
class Studio:
    """The bench, its subjects, and what was learned, kept in files of its work folder by name."""

    bench: Bench
    known: dict[str, Taught]
    loaded: dict[str, ConceptWeights] = field(default_factory=dict)

    def is_new(self, one: Taught) -> bool:
        """Whether the base lacks the category."""
        return one.class_noun not in self.bench.model.description.class_nouns

    def called(self, one: Taught) -> str:
        """What a prompt says."""
        return with_article(one.class_noun) if self.is_new(one) else f"a <{one.slug}> {one.class_noun}"

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
        word = {"word": "class-noun"} if self.is_new(one) else {}
        return self.learned(SINGLE, [one], single, {**SINGLES[single], **word})

    def merged(
        self, merge: str, group: Sequence[Taught], scale: float, single: str, changed: dict[str, Any]
    ) -> tuple[ConceptWeights, dict[str, Any]]:
        """The merge of what each taught by itself, and its report without the sites."""
        inputs = [MergeInput(one.slug, self.alone(one, single), scale) for one in group]
        made = MERGES[merge].merge(
            self.bench.model, inputs, MERGE_CARDS[merge].params_type(**changed), InProcessRun()
        )
        return made.weights, made.report.model_dump(mode="json", exclude={"sites"})


def run(path: Path, results: Path, work: Path, only: Sequence[str] = ()) -> None:
    """Run what is missing of the experiment, then write the summary, the table and a sheet for each group."""
    bench = Bench.load(path, results, work / path.stem)
    bench.folder.mkdir(parents=True, exist_ok=True)
    known = {one.slug: one for index in bench.spec["subjects"] for one in listed(Path(index))}
    studio = Studio(bench, known)
    ways = [BASE, *bench.spec["ways"]]
    if unknown := set(only) - set(ways):
        raise SystemExit(f"no such way: {', '.join(sorted(unknown))}")
    for slugs in (each for groups in bench.spec["groups"].values() for each in groups):
        group = [known[slug] for slug in slugs]
        for way in ways:
            file = bench.folder / f"{way}--{'-'.join(slugs)}.json"
            if (
                (only and way not in only)
                or (file.exists() and bench.is_current(json.loads(file.read_text())))
                or (way in LEARNED_AS_ONE and any(studio.is_new(one) for one in group))
            ):
                continue
            result = measured(studio, way, group)
            write_json(file, result)
            print(f"{way:18} {'-'.join(slugs):24} all there {result['all']:.2f} {result['each']}", flush=True)
    summarise(bench, ways)


def measured(studio: Studio, way: str, group: Sequence[Taught]) -> dict[str, Any]:
    """Draw and look. The base's own pictures and true photos side by side are the anchors of every way."""
    bench = studio.bench
    panel, wanted = bench.panel, [one.class_noun for one in group]
    nouns = list(dict.fromkeys([*bench.model.description.class_nouns, *wanted]))
    features = [panel.subject_features(photo_pixels(one.photos, 64)) for one in group]
    references = [photo_pixels(one.reference, 64) for one in group]
    true = torch.stack([side_by_side(list(photos)) for photos in zip(*references, strict=False)])
    base = drawn(studio, BASE, group)[0]
    pixels, report = (base, None) if way == BASE else drawn(studio, way, group)
    _, middles = crops(true[:1])
    zero, one = (subject_scores(panel, each, features).max(axis=1).mean(axis=0) for each in (base, true))
    thresholds = zero + HALF * (one - zero)

    def seen(pictures: Tensor) -> tuple[Verdict, Verdict]:
        return (
            verdict(subject_scores(panel, pictures, features), list(thresholds), middles),
            verdict(class_scores(panel, pictures, nouns, wanted), [READ] * len(group), middles),
        )

    individuals, classes = seen(pixels)
    true_individuals, true_classes = seen(true)
    keep_strip(bench, way, group, pixels)
    return {
        "way": way,
        "group": [each.slug for each in group],
        "pictures": len(pixels),
        "all": float(individuals.together.mean()),
        "each": [round(float(share), 3) for share in individuals.each.mean(axis=0)],
        "all_classes": float(classes.together.mean()),
        "photos_all": float(true_individuals.together.mean()),
        "photos_all_classes": float(true_classes.together.mean()),
        "anchors": {"zero": zero.tolist(), "one": one.tolist()},
        **({"report": report} if report else {}),
        **bench.instruments,
        "environment": environment(),
    }


def drawn(studio: Studio, way: str, group: Sequence[Taught]) -> tuple[Tensor, dict[str, Any] | None]:
    """Every place with every seed: [n, 3, S, S] in [-1, 1], on the CPU."""
    bench = studio.bench
    nouns = [with_article(one.class_noun) for one in group]
    words = [studio.called(one) for one in group]
    report: dict[str, Any] | None = None
    weights: tuple[tuple[ConceptWeights, float], ...] = ()
    regions: list[tuple[str, Box, ConceptWeights]] = []
    unguided = way.removesuffix("-guided")
    plain = unguided.removesuffix("-company")
    stem = plain.removesuffix("-companions")
    single = "companions" if stem != plain else SINGLE
    if stem == "textual-inversion":
        weights = tuple((studio.learned(stem, [one], stem, {}), 1.0) for one in group)
    elif stem == "regions":
        for place, (one, word) in enumerate(zip(group, words, strict=True)):
            box = Box(place / len(group), 0.0, 1.0 / len(group), 1.0)
            own = studio.alone(one, single)
            regions.append((" and ".join([word] * len(group)), box, own))
    elif stem in JOINT:
        method, changed = JOINT[stem]
        weights = ((studio.learned(method, group, stem, changed), 1.0),)
    elif way != BASE:
        merge, scale = ("linear", 1.0 / len(group)) if stem == "average" else (stem, 1.0)
        changed = {"company": True} if plain != unguided else {}
        learned, report = studio.merged(merge, group, scale, single, changed)
        weights = ((learned, 1.0),)
    subject = " and ".join(words if weights else nouns)
    defaults, side = bench.model.description.defaults, bench.model.description.resolution
    units = [
        GenerationUnit(
            index=index,
            text=f"a photo of {subject} {place}",
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
            attention_guidance=GUIDANCE if unguided != way else 0.0,
        )
        for index, (place, seed) in enumerate(
            (place, seed) for place in bench.spec["places"] for seed in bench.spec["image_seeds"]
        )
    ]
    found = {unit.index: pixels for unit, pixels in generate(bench.model, units, InProcessRun())}
    ordered = np.stack([found[index] for index in range(len(units))])
    return torch.from_numpy(ordered).permute(0, 3, 1, 2).float() / 127.5 - 1.0, report


def keep_strip(bench: Bench, way: str, group: Sequence[Taught], pixels: Tensor) -> None:
    """The first pictures of every place in turn, for the sheet; work files, not results."""
    seeds = len(bench.spec["image_seeds"])
    order = sorted(range(len(pixels)), key=lambda at: (at % seeds, at // seeds))[:SHOWN]
    folder = bench.work / "strips"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{way}--{'-'.join(one.slug for one in group)}.npy", strip(pixels[order]))


def summarise(bench: Bench, ways: Sequence[str]) -> None:
    """``<experiment>.json`` and ``.md`` beside the folder, and a sheet for every group."""
    rows: dict[str, dict[str, Any]] = {}
    for kind, groups in bench.spec["groups"].items():
        for way in ways:
            files = [bench.folder / f"{way}--{'-'.join(slugs)}.json" for slugs in groups]
            found = [json.loads(file.read_text()) for file in files if file.exists()]
            if of := [one for one in found if bench.is_current(one)]:
                rows.setdefault(kind, {})[way] = {
                    "n": len(of),
                    "groups": ["-".join(one["group"]) for one in of],
                    "all": finite(protocol.spread([one["all"] for one in of])),
                    "all_classes": finite(protocol.spread([one["all_classes"] for one in of])),
                    "each": float(np.mean([share for one in of for share in one["each"]])),
                }
    told = {"question": bench.spec["question"], **bench.instruments, "environment": environment(), **rows}
    write_json(bench.folder.with_suffix(".json"), told)
    bench.folder.with_suffix(".md").write_text(markdown(bench, rows))
    for name in ("-".join(slugs) for groups in bench.spec["groups"].values() for slugs in groups):
        strips = {way: bench.work / "strips" / f"{way}--{name}.npy" for way in ways}
        if shown := [labelled(said(way), np.load(file)) for way, file in strips.items() if file.exists()]:
            save_sheet(shown, bench.folder.parent / f"{bench.folder.name}-{name}.webp")


def said(way: str) -> str:
    """The name of a way in lines that fit a cell."""
    return re.sub(r"-(companions|company|guided)", r"\n\1", way)


def markdown(bench: Bench, rows: dict[str, dict[str, Any]]) -> str:
    """The table for people: shares of pictures, mean over groups with half of the 95 % interval."""
    lines = ["# Concepts together", "", bench.spec["question"], ""]
    for kind, ways in rows.items():
        lines += [f"## {kind}", ""]
        lines += [
            "| way | n | all subjects there | each subject there | all class nouns there |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {way} | {row['n']} | {share(row['all'])} | {row['each']:.2f} | {share(row['all_classes'])} |"
            for way, row in ways.items()
        ]
        lines.append("")
    pictures = len(bench.spec["places"]) * len(bench.spec["image_seeds"])
    lines += [
        f"{pictures} pictures of every group, the same seeds everywhere; one training each by the preset "
        f'`{bench.spec["preset"]}`, of the sample photos and of `benchmarks/photos`. "There" is what the judges say of '
        "crops (`benchmarks/presence.py`); ± is half of the 95 % interval over the n groups (Student), a dash where n "
        "is 1. The base knows no moongate, nor does the judge of words.",
        "",
        f"Base `{bench.instruments['base_hash'][:12]}`, judges `{bench.instruments['judges_hash'][:12]}`.",
        "",
    ]
    return "\n".join(lines)


def share(found: dict[str, Any]) -> str:
    """ "0.85 ± 0.10"; a dash in the place of an interval of one value."""
    half = found["half_width_95"]
    return f"{found['mean']:.2f} {'—' if half is None else f'± {half:.2f}'}"


def finite(found: protocol.Spread) -> dict[str, Any]:
    """For JSON: what is not finite is null."""
    return {name: value if np.isfinite(value) else None for name, value in asdict(found).items()}
