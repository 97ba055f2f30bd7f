"""Ten held-out subjects, one training each: is it the subject, is it where the prompt says, what did it cost?

One result file per (method, subject), so that the run resumes; a summary with spread; a sheet that a stranger
reads: photos, the base model with the class noun, the concept in six places. Measures: `benchmarks.grading`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.schemas.methods import CARDS
from benchmarks.environment import environment
from benchmarks.fine_tune_all import fine_tuned
from benchmarks.grading import Bench, acting, calibrated_by, graded, save_sheet, strip
from benchmarks.targets import Taught, subjects
from worker.ml.conditioning import TextEdit
from worker.ml.evaluation import protocol
from worker.ml.evaluation.measures import photo_pixels
from worker.ml.installation import Installation
from worker.ml.methods import METHODS
from worker.ml.run import InProcessRun
from worker.ml.toyworld.photos import photo_rng, photo_scenes
from worker.ml.toyworld.world import HELD_OUT, PLACES
from worker.ml.training.loop import train

MEASURES = (
    "subject_similarity",
    "prompt_similarity",
    "prompt_similarity_of_true_photos",
    "place_accuracy",
    "place_accuracy_of_base",
    "drift",
    "seconds",
    "calibration_seconds",
    "bytes",
)


def params_of(bench: Bench, method: str) -> Any:
    """The parameters of one entry of the experiment; "fine-tune-all" has Custom Diffusion's."""
    choice = dict(bench.spec["methods"][method])
    preset, name = choice.pop("preset", None), choice.pop("method", method)
    card = CARDS["custom-diffusion" if name == "fine-tune-all" else name]
    presets = card.presets_for(bench.model.description)
    return card.params_type(**{**(presets[preset] if preset else {}), **choice})


@contextmanager
def learned(
    bench: Bench, method: str, taught: Taught, costs: dict[str, Any]
) -> Iterator[tuple[TextEdit, Installation, float]]:
    """Train ``taught`` by ``method``; while open the model draws it. ``costs`` gets seconds and bytes."""
    params, seed, model = params_of(bench, method), bench.spec["training_seed"], bench.model
    run, prior_dir = InProcessRun(), bench.work / "prior"
    began = time.monotonic()
    if method == "fine-tune-all":
        with fine_tuned(model, taught.examples, params, seed=seed, prior_dir=prior_dir, run=run) as edit:
            size = 4 * sum(p.numel() for p in model.denoiser.parameters())
            costs.update(seconds=time.monotonic() - began, bytes=size, steps=params.steps)
            yield edit, (), 1.0
        return
    chosen = METHODS[bench.spec["methods"][method].get("method", method)]
    trainee = chosen.trainee(
        model, [taught.examples], params, seed=seed, prior_dir=prior_dir, previews=[], run=run
    )
    weights = train(model, [trainee], run)[0]
    costs.update(seconds=time.monotonic() - began, bytes=len(weights.to_bytes()), steps=params.steps)
    began = time.monotonic()
    weights, found = calibrated_by(bench, weights, taught)
    costs.update(calibration_seconds=time.monotonic() - began, **found)
    yield acting(model, weights)


def measured(bench: Bench, method: str, taught: Taught) -> tuple[dict[str, Any], Tensor, Tensor]:
    """All measures of one training, with the base's pictures and the concept's."""
    costs: dict[str, Any] = {}
    found, base, own = graded(bench, taught, partial(learned, bench, method, taught, costs))
    anchors = found["prompt_anchors"]
    of_true = protocol.Scale(anchors["zero"], anchors["one"]).of(true_photos(bench, taught))
    result = {
        "method": method,
        "subject": taught.slug,
        "class_noun": taught.class_noun,
        **bench.instruments,
        **found,
        "prompt_similarity_of_true_photos": of_true,
        "params": params_of(bench, method).model_dump(),
        **costs,
        "environment": environment(),
    }
    return result, base, own


def true_photos(bench: Bench, taught: Taught) -> float:
    """Mean cosine of the subject's own photos with their captions ("a photo of a dog in the snow"): what the judge
    gives to perfect pictures of a drawing it has never seen, so the most a concept can be expected to reach.
    """
    key = next(held.key for held in HELD_OUT if held.slug == taught.slug)
    places = [scene.place for scene in photo_scenes(key, photo_rng(taught.slug))]
    where = [PLACES[place][0] if place in PLACES else f"on a {place} background" for place in places]
    photos = photo_pixels([*taught.photos, *taught.reference], bench.model.description.resolution)
    seen = bench.panel.image_text_features(photos).numpy()
    read = bench.panel.text_features([f"a photo of a {taught.class_noun} {words}" for words in where])
    return protocol.mean_matched_cosine(seen, read.numpy())


def run(path: Path, results: Path, work: Path, only: Sequence[str] = ()) -> None:
    """Run what is missing of the experiment, then write summary and sheet. ``only``: slugs; all when empty."""
    bench = Bench.load(path, results, work)
    bench.folder.mkdir(parents=True, exist_ok=True)
    for method in bench.spec["methods"]:
        for taught in _subjects(bench):
            file = bench.folder / f"{method}--{taught.slug}.json"
            done = file.exists() and is_current(bench, json.loads(file.read_text()))
            if done or (only and taught.slug not in only):
                continue
            result, base, own = measured(bench, method, taught)
            keep_pictures(bench, method, taught, base, own)
            file.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{method:24} {taught.slug:10} subject {result['subject_similarity']:.2f} "
                  f"prompt {result['prompt_similarity']:.2f} {result['seconds']:.0f} s", flush=True)  # fmt: skip
    summarise(bench)


def is_current(bench: Bench, result: dict[str, Any]) -> bool:
    """Whether it is of these instruments, and at the scale that calibration found; fine-tune-all has none."""
    return bench.is_current(result) and ("scale" in result or result["method"] == "fine-tune-all")


def _subjects(bench: Bench) -> list[Taught]:
    return subjects(Path(bench.spec["subjects"]), bench.model.description.class_nouns)


def keep_pictures(bench: Bench, method: str, taught: Taught, base: Tensor, own: Tensor) -> None:
    """The first seed of each prompt, for the sheet; work files, not results."""
    folder = bench.work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    step = len(bench.spec["image_seeds"])
    photos = photo_pixels(taught.photos[:2], bench.model.description.resolution)
    Image.fromarray(strip(torch.cat([photos, base[:1], own[::step]]))).save(
        folder / f"{method}--{taught.slug}.png"
    )


def summarise(bench: Bench) -> None:
    """``<experiment>.json`` beside the folder, and ``<experiment>-<method>.webp`` where all strips are at hand."""
    files = [json.loads(path.read_text()) for path in sorted(bench.folder.glob("*.json"))]
    table: dict[str, Any] = {}
    for method in bench.spec["methods"]:
        rows = [one for one in files if one["method"] == method and is_current(bench, one)]
        if rows:
            table[method] = {"n": len(rows)} | {
                measure: asdict(protocol.spread([row[measure] for row in rows]))
                for measure in MEASURES
                if all(measure in row for row in rows)  # fine-tune-all is not calibrated
            }
        strips = [bench.work / "pictures" / f"{method}--{one.slug}.png" for one in _subjects(bench)]
        if strips and all(file.exists() for file in strips):
            sheet = bench.folder.parent / f"{bench.folder.name}-{method}.webp"
            save_sheet([np.asarray(Image.open(file)) for file in strips], sheet)
    summary = {**bench.instruments, "question": bench.spec["question"], "methods": table}
    bench.folder.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
