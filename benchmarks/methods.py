"""The table of methods: every method of the registry by every preset of the experiment on every target, judged alike.

One result file per (method, preset, target), so that the run resumes and several processes share it (``--only`` names
targets or methods); a summary with 95 % intervals over targets; a table in Markdown; and for every target a sheet,
methods by prompts, with the same seeds. A result is made again when base, judges or parameters have changed.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.schemas.methods import CARDS
from benchmarks.environment import environment
from benchmarks.grading import Bench, acting, calibrated_by, graded, labelled, save_sheet, strip, write_json
from benchmarks.targets import BLUEPRINT, Taught, blueprint_style, subjects
from worker.ml.analysis import weight_change
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.evaluation import protocol
from worker.ml.evaluation.measures import photo_pixels
from worker.ml.installation import Installation
from worker.ml.methods import METHODS

MEASURES = ("subject_similarity", "prompt_similarity", "drift", "seconds", "peak_memory_bytes", "bytes")
MOVED = ("cross-attention", "self-attention", "rest", "text-encoder")
"""Groups of layers, in the order of Kumari et al. 2023 (figure 2)."""


@dataclass(frozen=True)
class Entry:
    """A row of the table: a method by a preset, or by a variant of one."""

    method: str
    preset: str
    params: dict[str, Any]
    variant: str = ""
    calibrate: bool = False
    """Drawn at the scale that calibration finds; else at 1, as the papers do."""

    @property
    def key(self) -> str:
        """Names its files."""
        return "-".join(part for part in (self.method, self.preset, self.variant) if part)


def entries(bench: Bench) -> list[Entry]:
    """Every method of the registry that serves the base, or those that the experiment names; ``params`` override.
    Then its ``variants``: a preset with other parameters.
    """
    named = bench.spec.get("methods") or list(METHODS)
    found = []
    for method in (name for name in named if name in bench.model.description.methods):
        found += [entry_of(bench, method, preset, {}) for preset in bench.spec["presets"]]
    for variant in (one for one in bench.spec.get("variants", ()) if one["method"] in named):
        found.append(
            replace(
                entry_of(bench, variant["method"], variant["preset"], variant["params"], variant["name"]),
                calibrate=variant.get("calibrate", False),
            )
        )
    return found


def entry_of(bench: Bench, method: str, preset: str, params: dict[str, Any], variant: str = "") -> Entry:
    """The preset's parameters, then ``params``, then those that the experiment changes for all."""
    card = CARDS[method]
    known = card.params_type.model_fields
    changed = {name: value for name, value in bench.spec.get("params", {}).items() if name in known}
    made = card.params_type(**{**card.presets_for(bench.model.description)[preset], **params, **changed})
    return Entry(method, preset, made.model_dump(mode="json"), variant)


def targets(bench: Bench) -> list[Taught]:
    """The experiment's targets in its order: slugs of sample photos, and "blueprint" for the style."""
    index, nouns = Path(bench.spec["subjects"]), bench.model.description.class_nouns
    known = {one.slug: one for one in subjects(index, nouns)}
    known[BLUEPRINT] = blueprint_style(index, nouns, bench.work / BLUEPRINT)
    return [known[slug] for slug in bench.spec["targets"]]


def chosen(only: Sequence[str], entry: Entry, taught: Taught, known: set[str]) -> bool:
    """Whether ``only`` asks for it: targets and methods may both be named, and each limits. SystemExit for a name
    that is neither: a typing error must not look like a finished table.
    """
    methods = [name for name in only if name in METHODS]
    slugs = [name for name in only if name not in METHODS]
    if unknown := set(slugs) - known:
        raise SystemExit(f"no such target or method: {', '.join(sorted(unknown))}")
    return (not methods or entry.method in methods) and (not slugs or taught.slug in slugs)


def run(path: Path, results: Path, work: Path, only: Sequence[str] = ()) -> None:
    """Run what is missing of the experiment, then write summary, table and sheets."""
    bench = Bench.load(path, results, work / path.stem)
    bench.folder.mkdir(parents=True, exist_ok=True)
    listed = targets(bench)
    for taught in listed:
        for entry in entries(bench):
            if not chosen(only, entry, taught, {one.slug for one in listed}):
                continue
            file = bench.folder / f"{entry.key}--{taught.slug}.json"
            if file.exists() and is_current(bench, entry, json.loads(file.read_text())):
                continue
            result = measured(bench, entry, taught)
            write_json(file, result)
            told = result.get("refused") or (
                f"subject {result['subject_similarity']:.2f} prompt {result['prompt_similarity']:.2f} "
                f"{result['seconds']:.0f} s"
            )
            print(f"{entry.key:32} {taught.slug:10} {told}", flush=True)
    summarise(bench)


def is_current(bench: Bench, entry: Entry, result: dict[str, Any]) -> bool:
    """Whether the result is of this base, these judges and these parameters; one that is younger than the result had
    its default.
    """
    known = CARDS[entry.method].params_type(**result["params"]).model_dump(mode="json")
    return bench.is_current(result) and known == entry.params and entry.calibrate == ("scale" in result)


def measured(bench: Bench, entry: Entry, taught: Taught) -> dict[str, Any]:
    """Train in a process of its own, grade here. A method that refuses the target gives its reason instead."""
    result: dict[str, Any] = {
        "method": entry.method,
        "preset": entry.preset,
        "target": taught.slug,
        "kind": taught.kind,
        "class_noun": taught.class_noun,
        **bench.instruments,
        "params": entry.params,
        "environment": environment(),
    }
    weights = bench.work / "weights" / f"{entry.key}--{taught.slug}.safetensors"
    costs = trained(bench, entry, taught, weights)
    if "refused" in costs:
        return result | costs
    learned, calibration = ConceptWeights.load(weights), dict[str, Any]()
    change = weight_change(bench.model, learned).mean_by_group
    if entry.calibrate:
        learned, calibration = calibrated_by(bench, learned, taught)
    found, base, own = graded(bench, taught, partial(loaded, bench, learned))
    seeds = len(bench.spec["image_seeds"])
    keep_pictures(bench, entry.key, taught, own, seeds)
    keep_pictures(bench, "base", taught, base, seeds)
    return result | found | costs | calibration | {"change_by_group": change}


def trained(bench: Bench, entry: Entry, taught: Taught, weights: Path) -> dict[str, Any]:
    """What the training cost. Raises CalledProcessError with the child's words on the terminal."""
    weights.parent.mkdir(parents=True, exist_ok=True)
    order, answer = weights.with_suffix(".order.json"), weights.with_suffix(".answer.json")
    answer.unlink(missing_ok=True)
    told = {
        "base": bench.spec["base"],
        "method": entry.method,
        "params": entry.params,
        "token": taught.slug,
        "class_noun": taught.class_noun,
        "kind": taught.kind,
        "photos": [str(photo) for photo in taught.photos],
        "seed": bench.spec["training_seed"],
        "prior": str(bench.work / "prior"),
        "weights": str(weights),
        "answer": str(answer),
        "threads": torch.get_num_threads(),
    }
    order.write_text(json.dumps(told))
    subprocess.run([sys.executable, "-m", "benchmarks.one_training", str(order)], check=True)
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


@contextmanager
def loaded(bench: Bench, weights: ConceptWeights) -> Iterator[tuple[TextEdit, Installation, float]]:
    """The weights of a training, as the sampling engine takes them."""
    yield acting(bench.model, weights)


def keep_pictures(bench: Bench, name: str, taught: Taught, pixels: Tensor, seeds: int) -> None:
    """The first of the ``seeds`` of each prompt after two photos, for the sheet; work files, not results."""
    folder = bench.work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    photos = photo_pixels(taught.photos[:2], bench.model.description.resolution)
    row = strip(torch.cat([photos, pixels[::seeds]]))
    file = folder / f"{name}--{taught.slug}.png"
    staged = file.with_suffix(".tmp")
    Image.fromarray(row).save(staged, "PNG")
    staged.replace(file)


def summarise(bench: Bench) -> None:
    """``<experiment>.json``, ``<experiment>.md`` and ``<experiment>-<target>.webp`` beside the folder."""
    rows = []
    for entry in entries(bench):
        files = [bench.folder / f"{entry.key}--{one.slug}.json" for one in targets(bench)]
        found = [json.loads(file.read_text()) for file in files if file.exists()]
        rows.append((entry, [one for one in found if is_current(bench, entry, one)]))
    table = {
        kind: {entry.key: summary(found, kind) for entry, found in rows if of_kind(found, kind)}
        for kind in ("subject", "style")
    }
    told = {**bench.instruments, "question": bench.spec["question"], "environment": environment(), **table}
    write_json(bench.folder.with_suffix(".json"), told)
    bench.folder.with_suffix(".md").write_text(markdown(bench, table))
    for taught in targets(bench):
        save_target_sheet(bench, taught, [entry for entry, _ in rows])


def of_kind(results: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Results of targets of the kind that were not refused."""
    return [one for one in results if one["kind"] == kind and "refused" not in one]


def summary(results: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """``n`` targets, and each measure's spread over them. One target alone has no interval: it is null."""
    found = of_kind(results, kind)
    spreads = {name: asdict(protocol.spread([one[name] for one in found])) for name in MEASURES}
    finite = {
        name: {key: value if math.isfinite(value) else None for key, value in each.items()}
        for name, each in spreads.items()
    }
    return {
        "n": len(found),
        "targets": [one["target"] for one in found],
        **finite,
        "change": mean_change(found),
    }


def mean_change(results: list[dict[str, Any]]) -> dict[str, float]:
    """The mean over targets of the mean relative change of each group of layers; of results that tell it."""
    told = [one["change_by_group"] for one in results if "change_by_group" in one]
    return {group: float(np.mean([one[group] for one in told])) for group in MOVED if told}


def markdown(bench: Bench, table: dict[str, dict[str, Any]]) -> str:
    """The table for people. n stands in every row; an interval is the half width at 95 % over targets (Student)."""
    lines = ["# Methods, judged alike", "", bench.spec["question"], ""]
    for kind, title in (("subject", "Subjects"), ("style", "A style")):
        if not table[kind]:
            continue
        lines += [f"## {title}", ""]
        lines.append("| method | preset | n | subject similarity | prompt similarity | drift (KID x 1000) | seconds | peak memory (MB) | size (kB) |")  # fmt: skip  # noqa: E501
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for entry in (one for one in entries(bench) if one.key in table[kind]):
            row = table[kind][entry.key]
            cells = [
                f"{CARDS[entry.method].title} | {', '.join(filter(None, (entry.preset, entry.variant)))} | {row['n']}",
                cell(row["subject_similarity"], 1, 2),
                cell(row["prompt_similarity"], 1, 2),
                cell(row["drift"], 1000, 2),
                cell(row["seconds"], 1, 0),
                cell(row["peak_memory_bytes"], 1e-6, 0),
                cell(row["bytes"], 1e-3, 0),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *moved(bench, table[kind])]
    seeds = len(bench.spec["image_seeds"])
    lines += [
        f"One training a target; {len(bench.spec['prompts'])} prompts, {seeds} pictures of each, the same seeds "
        f"everywhere, {bench.spec['num_inference_steps']} steps. ± is half of the 95 % interval over the n targets "
        "(Student), a dash where n is 1. Scales and anchors: `worker/ml/evaluation/protocol.py`. Seconds (of one "
        "core's work, or of the clock where there is a GPU) and memory "
        f"without prior images, which a class shares; memory of the whole process, or of the GPU where there is one "
        f"(here: {environment()['device']}).",
        "",
        f"Base `{bench.instruments['base_hash'][:12]}`, judges `{bench.instruments['judges_hash'][:12]}`.",
        "",
    ]
    return "\n".join(lines)


def moved(bench: Bench, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Where weights moved, for the methods that move any."""
    found = {key: row["change"] for key, row in rows.items() if any(row["change"].values())}
    if not found:
        return []
    names = {entry.key: entry for entry in entries(bench) if entry.key in found}
    return [
        "Mean relative change of the weights of a group of layers (`GET /weights/{id}/analysis`), in thousandths:",
        "",
        f"| method | preset | {' | '.join(MOVED)} |",
        f"|---|---|{'---|' * len(MOVED)}",
        *(
            f"| {CARDS[entry.method].title} | {', '.join(filter(None, (entry.preset, entry.variant)))} | "
            f"{' | '.join(f'{1000 * found[key][group]:.2f}' for group in MOVED)} |"
            for key, entry in names.items()
        ),
        "",
    ]


def cell(spread: dict[str, Any], factor: float, digits: int) -> str:
    """``0.73 ± 0.16``."""
    half = spread["half_width_95"]
    told = f"{half * factor:.{digits}f}" if half is not None else "–"
    return f"{spread['mean'] * factor:.{digits}f} ± {told}"


def save_target_sheet(bench: Bench, taught: Taught, listed: list[Entry]) -> None:
    """The base model's row, then a row for every method whose pictures are at hand; not without any."""
    said = {"base": "base"} | {
        entry.key: "\n".join(filter(None, (entry.method, entry.preset, entry.variant))) for entry in listed
    }
    names = list(said)
    files = {name: bench.work / "pictures" / f"{name}--{taught.slug}.png" for name in names}
    there = [name for name in names if files[name].exists()]
    if len(there) > 1:
        pictures = [np.asarray(Image.open(files[name])) for name in there]
        rows = [labelled(said[name], row) for name, row in zip(there, pictures, strict=True)]
        save_sheet(rows, bench.folder.parent / f"{bench.folder.name}-{taught.slug}.webp")
