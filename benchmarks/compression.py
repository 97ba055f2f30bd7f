"""The ladder of sizes: subject and prompt similarity of one training, made smaller step by step (methods.md 7).

One result file per subject, so that the run resumes; weights of a subject are trained once and kept in the work folder,
named by what they depend on. All rungs draw the same prompts and seeds, so that they differ by what was cut alone. The
summary has a spread for every rung; the curve is drawn without a plotting library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from backend.schemas.weights import Compression
from benchmarks.environment import environment
from benchmarks.grading import Bench, calibrated_by
from benchmarks.subjects import params_of
from benchmarks.targets import Taught, subjects
from worker.ml.compression import compress
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.evaluation import protocol
from worker.ml.evaluation.measures import Plan, draw, photo_pixels, repeated, unrelated
from worker.ml.families import DiffusionModel
from worker.ml.methods import METHODS
from worker.ml.run import InProcessRun
from worker.ml.training.loop import train

METHOD = "custom-diffusion"
PARENT = "019a0000-0000-7000-8000-000000000000"
MEASURES = ("subject_similarity", "prompt_similarity", "bytes", "relative_error")
CURVES = {"subject_similarity": "#8a5a00", "prompt_similarity": "#1f6f5c"}
WIDTH_PX, HEIGHT_PX, MARGIN_PX = 900, 520, 60


def learned(bench: Bench, taught: Taught) -> ConceptWeights:
    """Trained now, or found in the work folder under the hash of everything they depend on."""
    params, seed = params_of(bench, METHOD), bench.spec["training_seed"]
    depends = [bench.model.description.hash, params.model_dump(mode="json"), seed, taught.slug]
    digest = hashlib.sha256(
        json.dumps([*depends, [photo.name for photo in taught.photos]]).encode()
    ).hexdigest()
    file = bench.work / "ladder" / f"{taught.slug}-{digest[:16]}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        run, prior = InProcessRun(), bench.work / "prior"
        trainee = METHODS[METHOD].trainee(
            bench.model, [taught.examples], params, seed=seed, prior_dir=prior, previews=[], run=run
        )
        [weights] = train(bench.model, [trainee], run)
        calibrated_by(bench, weights, taught)[0].save(file)
    return ConceptWeights.load(file)


def rung(
    model: DiffusionModel, weights: ConceptWeights, how: dict[str, Any] | None
) -> tuple[ConceptWeights, dict[str, Any]]:
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
    smaller = compress(model, weights, Compression.model_validate(wanted), PARENT, InProcessRun())
    report = smaller.report
    ranks = [site.rank for site in report.sites]
    return smaller.weights, {
        "compression": wanted,
        "bytes": report.bytes_after,
        "relative_error": report.relative_error,
        "discarded_energy": report.discarded_energy,
        "ranks": ranks,
    }


def measured(bench: Bench, taught: Taught) -> dict[str, Any]:
    """Every rung of the ladder for one subject."""
    panel, plan, target = bench.panel, bench.plan(taught), taught.target
    seeds, side = len(plan.image_seeds), bench.model.description.resolution
    weights = learned(bench, taught)
    base = drawn_as(bench, plan, target.plain)
    photos, true = (photo_pixels(role, side) for role in (taught.photos, taught.reference))

    def rows(pixels: Tensor) -> protocol.Features:
        return panel.subject_features(pixels).numpy()

    scale = protocol.subject_scale(rows(photos), rows(true), rows(base))
    texts = repeated(panel.text_features([target.plain(prompt) for prompt in plan.prompts]), seeds)
    away = repeated(panel.text_features(unrelated(bench.model, plan, target)), seeds)
    prompt_scale = protocol.prompt_scale(panel.image_text_features(base).numpy(), texts, away)
    ladder = {}
    for name, how in bench.spec["ladder"].items():
        smaller, cost = rung(bench.model, weights, how)
        mine = drawn_as(
            bench, plan, target.own, METHODS[METHOD].edit(bench.model, smaller), weights.manifest.scale
        )
        seen = panel.image_text_features(mine).numpy()
        ladder[name] = {
            "subject_similarity": scale.of(protocol.mean_pairwise_cosine(rows(mine), rows(photos))),
            "prompt_similarity": prompt_scale.of(protocol.mean_matched_cosine(seen, texts)),
            **cost,
        }
        print(f"{taught.slug:10} {name:32} {cost['bytes']:>9} bytes  "
              f"subject {ladder[name]['subject_similarity']:.2f} "
              f"prompt {ladder[name]['prompt_similarity']:.2f}", flush=True)  # fmt: skip
    return {
        "subject": taught.slug,
        "class_noun": taught.class_noun,
        "method": METHOD,
        **bench.instruments,
        "spec_hash": spec_hash(bench),
        "subject_anchors": asdict(scale),
        "prompt_anchors": asdict(prompt_scale),
        "params": params_of(bench, METHOD).model_dump(),
        "ladder": ladder,
        "environment": environment(),
    }


def drawn_as(
    bench: Bench, plan: Plan, wording: Callable[[str], str], edit: TextEdit | None = None, scale: float = 1.0
) -> Tensor:
    """Every prompt in this wording with every seed: [n, 3, S, S] in [-1, 1]."""
    texts = [wording(prompt) for prompt in plan.prompts]
    return draw(bench.model, plan, texts, InProcessRun(), edit=edit, scale=scale)


def spec_hash(bench: Bench) -> str:
    """Of what is drawn and cut: a result of another ladder, or of other prompts, is measured again."""
    names = ("methods", "ladder", "prompts", "image_seeds", "num_inference_steps", "training_seed")
    told = json.dumps([bench.spec[name] for name in names])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def is_current(bench: Bench, file: Path) -> bool:
    """Whether the file holds what this experiment would measure."""
    if not file.exists():
        return False
    result = json.loads(file.read_text())
    return bench.is_current(result) and result["spec_hash"] == spec_hash(bench)


def run(path: Path, results: Path, work: Path, only: Sequence[str] = ()) -> None:
    """Measure the subjects that are missing, then write the summary and draw the curve. ``only``: slugs."""
    bench = Bench.load(path, results, work)
    bench.folder.mkdir(parents=True, exist_ok=True)
    known = subjects(Path(bench.spec["subjects"]), bench.model.description.class_nouns)
    targets = [one for one in known if one.slug in bench.spec["targets"]]
    for taught in targets:
        file = bench.folder / f"{taught.slug}.json"
        if is_current(bench, file) or (only and taught.slug not in only):
            continue
        file.write_text(json.dumps(measured(bench, taught), indent=1) + "\n")
    summarise(bench, [one.slug for one in targets])


def summarise(bench: Bench, slugs: Sequence[str]) -> None:
    """``compression.json`` and ``compression.webp`` beside the folder, from the current files."""
    files = [bench.folder / f"{slug}.json" for slug in slugs]
    found = [json.loads(file.read_text()) for file in files if is_current(bench, file)]
    if not found:
        return
    table = {
        name: {"n": len(found)}
        | {
            measure: asdict(protocol.spread([one["ladder"][name][measure] for one in found]))
            for measure in MEASURES
        }
        for name in bench.spec["ladder"]
    }
    summary = {
        **bench.instruments,
        "question": bench.spec["question"],
        "subjects": [one["subject"] for one in found],
        "ladder": table,
    }
    bench.folder.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    drawn(table).save(bench.folder.with_suffix(".webp"), quality=90)


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
