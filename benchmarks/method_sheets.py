"""The sheets of the table of methods made whole: ``python -m benchmarks.method_sheets --only stark,domino``.

The table's results are small files that are kept; the pictures lie in the work folder and are gone with it. This
trains again what has a current result and no picture, and draws the first seed of every prompt, at the scale that the
result used. Weights that are still at hand are not trained again. No number changes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.grading import Bench, acting
from benchmarks.methods import Entry, chosen, entries, is_current, keep_pictures, summarise, targets, trained
from benchmarks.targets import Taught
from worker.ml.concept_weights import ConceptWeights
from worker.ml.evaluation.measures import Sitting
from worker.ml.run import InProcessRun

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="comma-separated targets and methods")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    only = [name for name in given.only.split(",") if name]
    run(HERE / "experiments" / "methods.json", HERE / "results", given.work, only)


def run(path: Path, results: Path, work: Path, only: Sequence[str] = ()) -> None:
    """Draw what is missing, then write the sheets."""
    bench = Bench.load(path, results, work / path.stem)
    listed = targets(bench)
    for taught in listed:
        for entry in entries(bench):
            result, picture = found(bench, entry, taught)
            if result and not picture and chosen(only, entry, taught, {one.slug for one in listed}):
                draw(bench, entry, taught, result)
                print(f"{entry.key:32} {taught.slug}", flush=True)
    summarise(bench)


def found(bench: Bench, entry: Entry, taught: Taught) -> tuple[dict[str, Any] | None, bool]:
    """The current result that has pictures to show, and whether its picture is at hand."""
    file = bench.folder / f"{entry.key}--{taught.slug}.json"
    result = json.loads(file.read_text()) if file.exists() else None
    if result is None or "refused" in result or not is_current(bench, entry, result):
        return None, False
    return result, (bench.work / "pictures" / f"{entry.key}--{taught.slug}.png").exists()


def draw(bench: Bench, entry: Entry, taught: Taught, result: dict[str, Any]) -> None:
    """One seed of every prompt, into the work folder."""
    weights = bench.work / "weights" / f"{entry.key}--{taught.slug}.safetensors"
    if not is_of(bench, entry, weights):
        trained(bench, entry, taught, weights)
    learned = ConceptWeights.load(weights)
    scaled = learned.manifest.model_copy(update={"scale": result.get("scale", 1.0)})
    edit, installation, scale = acting(bench.model, replace(learned, manifest=scaled))
    shown = list[torch.Tensor]()
    plan = replace(bench.plan(taught), image_seeds=tuple(bench.spec["image_seeds"][:1]))
    sitting = Sitting(
        bench.model,
        bench.panel,
        plan,
        InProcessRun(),
        show=lambda which, _place, pixels: shown.append(pixels),
    )
    sitting.own(taught.target, edit, installation, scale=scale)
    keep_pictures(bench, entry.key, taught, torch.cat(shown), seeds=1)


def is_of(bench: Bench, entry: Entry, weights: Path) -> bool:
    """Whether the file holds what the entry would train on this base."""
    if not weights.exists():
        return False
    told = ConceptWeights.load(weights).manifest
    return told.base_hash == bench.model.description.hash and told.params == entry.params


if __name__ == "__main__":
    main()
