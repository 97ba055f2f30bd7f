"""The ladder of sizes: subject and prompt similarity of one training, made smaller step by step (methods.md 7).

One result file per subject, so that the run resumes; weights of a subject are trained once and kept in the work folder,
named by what they depend on. All rungs draw the same prompts and seeds, so that they differ by what was cut alone. The
summary has a spread for every rung; the curve is drawn without a plotting library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from backend.schemas.weights import Compression
from benchmarks.environment import environment
from benchmarks.fine_tune_all import concept_of
from benchmarks.subjects import Experiment
from worker.ml.compression import compress
from worker.ml.concept_weights import ConceptWeights
from worker.ml.evaluation import protocol
from worker.ml.methods import METHODS
from worker.ml.run import InProcessRun
from worker.ml.training.loop import train

METHOD = "custom-diffusion"
PARENT = "019a0000-0000-7000-8000-000000000000"
MEASURES = ("subject_similarity", "prompt_similarity", "bytes", "relative_error")
CURVES = {"subject_similarity": "#8a5a00", "prompt_similarity": "#1f6f5c"}
WIDTH_PX, HEIGHT_PX, MARGIN_PX = 900, 520, 60


def learned(experiment: Experiment, subject: dict[str, Any]) -> ConceptWeights:
    """Trained now, or found in the work folder under the hash of everything they depend on."""
    params, seed = experiment.params(METHOD), experiment.spec["training_seed"]
    photos = experiment.photos(subject, "train")
    depends = [experiment.model.description.hash, params.model_dump(mode="json"), seed, subject["slug"]]
    digest = hashlib.sha256(json.dumps([*depends, [photo.name for photo in photos]]).encode()).hexdigest()
    file = experiment.work / "ladder" / f"{subject['slug']}-{digest[:16]}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        concept = concept_of(subject["slug"], subject["class_noun"], photos)
        run, prior = InProcessRun(), experiment.work / "prior"
        trainee = METHODS[METHOD].trainee(
            experiment.model, [concept], params, seed=seed, prior_dir=prior, previews=[], run=run
        )
        [weights] = train(experiment.model, [trainee], run)
        weights.save(file)
    return ConceptWeights.load(file)


def rung(weights: ConceptWeights, how: dict[str, Any] | None) -> tuple[ConceptWeights, dict[str, Any]]:
    """The weights cut as a rung of the ladder says, and what that costs. ``share``: of the smallest side of a matrix,
    or of the bytes.
    """
    whole = len(weights.to_bytes())
    if how is None:
        return weights, {"bytes": whole, "relative_error": 0.0}
    wanted = dict(how)
    if (share := wanted.pop("share", None)) is not None:
        sides = [min(parts["delta"].shape) for parts in weights.site_parts().values()]
        wanted["value"] = round(share * (min(sides) if how["criterion"] == "rank" else whole))
    smaller = compress(weights, Compression.model_validate(wanted), PARENT, InProcessRun())
    report = smaller.report
    ranks = [site.rank for site in report.sites]
    return smaller.weights, {
        "compression": wanted,
        "bytes": report.bytes_after,
        "relative_error": report.relative_error,
        "discarded_energy": report.discarded_energy,
        "ranks": ranks,
    }


def measured(experiment: Experiment, subject: dict[str, Any]) -> dict[str, Any]:
    """Every rung of the ladder for one subject."""
    judges, noun, prompts = experiment.judges, subject["class_noun"], experiment.spec["prompts"]
    seeds = len(experiment.spec["image_seeds"])
    weights = learned(experiment, subject)
    base = experiment.draw(noun)
    photos, true = (experiment.pixels(experiment.photos(subject, role)) for role in ("train", "reference"))

    def rows(pixels: Tensor) -> protocol.Features:
        return judges.subject_features(pixels).numpy()

    scale = protocol.subject_scale(rows(photos), rows(true), rows(base))
    texts = judges.text_features([p.format(noun) for p in prompts for _ in range(seeds)]).numpy()
    nouns = experiment.model.description.class_nouns
    other = nouns[(nouns.index(noun) + len(nouns) // 2) % len(nouns)]
    away = prompts[len(prompts) // 2 :] + prompts[: len(prompts) // 2]
    unrelated = judges.text_features([p.format(other) for p in away for _ in range(seeds)]).numpy()
    prompt_scale = protocol.prompt_scale(judges.image_text_features(base).numpy(), texts, unrelated)
    ladder = {}
    for name, how in experiment.spec["ladder"].items():
        smaller, cost = rung(weights, how)
        mine = experiment.draw(f"<{subject['slug']}> {noun}", METHODS[METHOD].edit(experiment.model, smaller))
        seen = judges.image_text_features(mine).numpy()
        ladder[name] = {
            "subject_similarity": scale.of(protocol.mean_pairwise_cosine(rows(mine), rows(photos))),
            "prompt_similarity": prompt_scale.of(protocol.mean_matched_cosine(seen, texts)),
            **cost,
        }
        print(f"{subject['slug']:10} {name:32} {cost['bytes']:>9} bytes  "
              f"subject {ladder[name]['subject_similarity']:.2f} "
              f"prompt {ladder[name]['prompt_similarity']:.2f}", flush=True)  # fmt: skip
    return {
        "subject": subject["slug"],
        "class_noun": noun,
        "method": METHOD,
        **experiment.instruments,
        "spec_hash": spec_hash(experiment),
        "subject_anchors": asdict(scale),
        "prompt_anchors": asdict(prompt_scale),
        "params": experiment.params(METHOD).model_dump(),
        "ladder": ladder,
        "environment": environment(),
    }


def spec_hash(experiment: Experiment) -> str:
    """Of what is drawn and cut: a result of another ladder, or of other prompts, is measured again."""
    names = ("methods", "ladder", "prompts", "image_seeds", "num_inference_steps", "training_seed")
    told = json.dumps([experiment.spec[name] for name in names])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def is_current(experiment: Experiment, file: Path) -> bool:
    """Whether the file holds what this experiment would measure."""
    if not file.exists():
        return False
    result = json.loads(file.read_text())
    return experiment.is_current(result) and result["spec_hash"] == spec_hash(experiment)


def run(path: Path, results: Path, work: Path, only: Sequence[str] = ()) -> None:
    """Measure the subjects that are missing, then write the summary and draw the curve. ``only``: slugs."""
    experiment = Experiment.load(path, results, work)
    experiment.folder.mkdir(parents=True, exist_ok=True)
    targets = [one for one in experiment.subjects if one["slug"] in experiment.spec["targets"]]
    for subject in targets:
        file = experiment.folder / f"{subject['slug']}.json"
        if is_current(experiment, file) or (only and subject["slug"] not in only):
            continue
        file.write_text(json.dumps(measured(experiment, subject), indent=1) + "\n")
    summarise(experiment, [one["slug"] for one in targets])


def summarise(experiment: Experiment, slugs: Sequence[str]) -> None:
    """``compression.json`` and ``compression.webp`` beside the folder, from the current files."""
    files = [experiment.folder / f"{slug}.json" for slug in slugs]
    found = [json.loads(file.read_text()) for file in files if is_current(experiment, file)]
    if not found:
        return
    table = {
        name: {"n": len(found)}
        | {
            measure: asdict(protocol.spread([one["ladder"][name][measure] for one in found]))
            for measure in MEASURES
        }
        for name in experiment.spec["ladder"]
    }
    summary = {
        **experiment.instruments,
        "question": experiment.spec["question"],
        "subjects": [one["subject"] for one in found],
        "ladder": table,
    }
    experiment.folder.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    drawn(table).save(experiment.folder.with_suffix(".webp"), quality=90)


def drawn(table: dict[str, Any]) -> Image.Image:
    """Both similarities against bytes (logarithmic), a dot for each rung with its half width of the 95 % interval."""
    picture = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), "#fbfaf7")
    draw = ImageDraw.Draw(picture)
    sizes = [rung["bytes"]["mean"] for rung in table.values()]
    low, high = np.log10(min(sizes)) - 0.1, np.log10(max(sizes)) + 0.1
    means = [rung[measure]["mean"] for rung in table.values() for measure in CURVES]
    floor, ceiling = min(0.0, *means) - 0.05, max(1.0, *means) + 0.05

    def place(size: float, value: float) -> tuple[float, float]:
        x = MARGIN_PX + (np.log10(size) - low) / (high - low) * (WIDTH_PX - 2 * MARGIN_PX)
        y = HEIGHT_PX - MARGIN_PX - (value - floor) / (ceiling - floor) * (HEIGHT_PX - 2 * MARGIN_PX)
        return float(x), float(y)

    for tick in np.arange(0, ceiling, 0.2):
        left, right = place(10**low, tick), place(10**high, tick)
        draw.line([left, right], fill="#d9dde5")
        draw.text((left[0] - 30, left[1] - 6), f"{tick:.1f}", fill="#1d2433")
    for number, (name, each) in enumerate(sorted(table.items(), key=lambda item: item[1]["bytes"]["mean"])):
        x, bottom = place(each["bytes"]["mean"], floor)
        draw.line([(x, bottom), (x, bottom + 5)], fill="#1d2433")
        draw.text((x - 34, bottom + 8 + 14 * (number % 3)), f"{name}", fill="#1d2433")
    for index, (measure, colour) in enumerate(CURVES.items()):
        rungs = sorted(table.values(), key=lambda each: each["bytes"]["mean"])
        points = [place(each["bytes"]["mean"], each[measure]["mean"]) for each in rungs]
        draw.line(points, fill=colour, width=2)
        for each, (x, y) in zip(rungs, points, strict=True):
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
            if np.isfinite(half := each[measure]["half_width_95"]):
                ends = [place(each["bytes"]["mean"], each[measure]["mean"] + sign * half) for sign in (-1, 1)]
                draw.line(ends, fill=colour)
        draw.text((MARGIN_PX, 12 + 16 * index), measure.replace("_", " "), fill=colour)
    draw.text((WIDTH_PX - 260, 12), "bytes of the file, logarithmic", fill="#1d2433")
    return picture
