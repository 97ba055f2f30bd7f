"""Concepts together: who is there when two or three share a prompt, by every way of putting them together.

The ways are those of `benchmarks.ways`. Beside them stands the base model with the class nouns, whose own rate of
showing all nouns is the yardstick. A category that the base lacks (the moongate) is taught and called by its plain
name; it has no joint training here, because one training has one kind of word. A style is that of the table of methods.
Presence: `benchmarks.presence`. One result file per (way, group), so that the run resumes; ``--only`` names ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.grading import Bench, labelled, save_sheet, strip, write_json
from benchmarks.presence import (
    HALF,
    READ,
    SeenAs,
    Verdict,
    class_scores,
    crops,
    side_by_side,
    styled,
    subject_scores,
    verdict,
)
from benchmarks.targets import BLUEPRINT, Taught, blueprint_style, in_blueprint, listed
from benchmarks.ways import BASE, LEARNED_AS_ONE, Studio, drawn
from worker.ml.evaluation import protocol
from worker.ml.evaluation.measures import photo_pixels

SHOWN = 6


def run(path: Path, results: Path, work: Path, only: Sequence[str] = ()) -> None:
    """Run what is missing of the experiment, then write the summary, the table and a sheet for each group."""
    bench = Bench.load(path, results, work / path.stem)
    bench.folder.mkdir(parents=True, exist_ok=True)
    known = {one.slug: one for index in bench.spec["subjects"] for one in listed(Path(index))}
    nouns = bench.model.description.class_nouns
    known[BLUEPRINT] = blueprint_style(Path(bench.spec["subjects"][0]), nouns, bench.work / BLUEPRINT)
    studio = Studio(bench, known)
    ways = {kind: ways_of(bench.spec, kind) for kind in bench.spec["groups"]}
    if unknown := set(only) - {way for each in ways.values() for way in each}:
        raise SystemExit(f"no such way: {', '.join(sorted(unknown))}")
    for kind, slugs in ((kind, each) for kind, groups in bench.spec["groups"].items() for each in groups):
        group = [known[slug] for slug in slugs]
        for way in ways[kind]:
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


def ways_of(spec: dict[str, Any], kind: str) -> list[str]:
    """The ways that groups of a kind are drawn by, the base first."""
    return [BASE, *spec["ways_of"].get(kind, spec["ways"])]


def measured(studio: Studio, way: str, group: Sequence[Taught]) -> dict[str, Any]:
    """Draw and look. The base's own pictures and true photos side by side are the anchors of every way."""
    bench = studio.bench
    base = studio.base_pictures(group)
    pixels, report = (base, None) if way == BASE else drawn(studio, way, group)
    keep_strip(bench, way, group, pixels)
    return {
        "way": way,
        "group": [each.slug for each in group],
        "pictures": len(pixels),
        **(in_style if group[-1].kind == "style" else side_by_side_in)(bench, group, base, pixels),
        **({"report": report} if report else {}),
        **bench.instruments,
        "environment": environment(),
    }


def in_style(bench: Bench, group: Sequence[Taught], base: Tensor, pixels: Tensor) -> dict[str, Any]:
    """The verdicts on one subject in a style."""
    panel, nouns = bench.panel, bench.model.description.class_nouns
    subject, style = (
        SeenAs(*(photo_pixels(role, 64) for role in (one.photos, one.reference))) for one in group
    )
    individuals = styled(panel, pixels, base, (subject, style), in_blueprint)
    true = styled(panel, in_blueprint(subject.reference), base, (subject, style), in_blueprint)
    scores = class_scores(panel, pixels, nouns, [group[0].class_noun])
    return {
        "all": float(individuals.together.mean()),
        "each": [round(float(share), 3) for share in individuals.each.mean(axis=0)],
        "all_classes": float((scores.max(axis=1) >= READ).mean()),
        "photos_all": float(true.together.mean()),
    }


def side_by_side_in(bench: Bench, group: Sequence[Taught], base: Tensor, pixels: Tensor) -> dict[str, Any]:
    """The verdicts on several subjects."""
    panel, wanted = bench.panel, [one.class_noun for one in group]
    nouns = list(dict.fromkeys([*bench.model.description.class_nouns, *wanted]))
    features = [panel.subject_features(photo_pixels(one.photos, 64)) for one in group]
    references = [photo_pixels(one.reference, 64) for one in group]
    true = torch.stack([side_by_side(list(photos)) for photos in zip(*references, strict=False)])
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
    return {
        "all": float(individuals.together.mean()),
        "each": [round(float(share), 3) for share in individuals.each.mean(axis=0)],
        "all_classes": float(classes.together.mean()),
        "photos_all": float(true_individuals.together.mean()),
        "photos_all_classes": float(true_classes.together.mean()),
        "anchors": {"zero": zero.tolist(), "one": one.tolist()},
    }


def keep_strip(bench: Bench, way: str, group: Sequence[Taught], pixels: Tensor) -> None:
    """The first pictures of every place in turn, for the sheet; work files, not results."""
    seeds = len(bench.spec["image_seeds"])
    order = sorted(range(len(pixels)), key=lambda at: (at % seeds, at // seeds))[:SHOWN]
    folder = bench.work / "strips"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{way}--{'-'.join(one.slug for one in group)}.npy", strip(pixels[order]))


def summarise(bench: Bench, ways: Mapping[str, Sequence[str]]) -> None:
    """``<experiment>.json`` and ``.md`` beside the folder, and a sheet for every group."""
    rows: dict[str, dict[str, Any]] = {}
    for kind, groups in bench.spec["groups"].items():
        for way in ways[kind]:
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
    shown_ways = list(dict.fromkeys(way for each in ways.values() for way in each))
    for name in ("-".join(slugs) for groups in bench.spec["groups"].values() for slugs in groups):
        strips = {way: bench.work / "strips" / f"{way}--{name}.npy" for way in shown_ways}
        if shown := [labelled(said(way), np.load(file)) for way, file in strips.items() if file.exists()]:
            save_sheet(shown, bench.folder.parent / f"{bench.folder.name}-{name}.webp")


def said(way: str) -> str:
    """The name of a way in lines that fit a cell."""
    return re.sub(r"-(collages|masked|lokr|companions|company|guided|retried)", r"\n\1", way)


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
        "is 1. The base knows no moongate, nor does the judge of words. `python -m benchmarks.run pairs` makes what is "
        "missing, this table and the sheets `pairs-*.webp`.",
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
