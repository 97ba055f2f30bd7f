"""Ten held-out subjects, one training each: is it the subject, is it where the prompt says, what did it cost?

One result file per (method, subject), so that the run resumes; a summary with spread; a sheet that a stranger
reads: photos, the base model with the class noun, the concept in six places. Measures: `worker.ml.evaluation.protocol`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.schemas.methods.custom_diffusion import PRESETS, CustomDiffusionParams
from benchmarks.environment import environment
from benchmarks.fine_tune_all import concept_of, fine_tuned
from worker.ml.conditioning import Prompt, TextEdit
from worker.ml.evaluation import protocol
from worker.ml.evaluation.judges import Judges, load_judges
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import installed
from worker.ml.methods import METHODS
from worker.ml.run import InProcessRun
from worker.ml.sampling.latents import Picture, sample_latents
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
    "bytes",
)


@dataclass(frozen=True)
class Experiment:
    """An experiment file with its base and judges loaded once."""

    spec: dict[str, Any]
    folder: Path
    work: Path
    model: DiffusionModel
    judges: Judges

    @staticmethod
    def load(path: Path, results: Path, work: Path) -> Experiment:
        spec = json.loads(path.read_text())
        base = Path(spec["base"])
        return Experiment(spec, results / path.stem, work, load_base(base), load_judges(base / "judges"))

    @cached_property
    def subjects(self) -> list[dict[str, Any]]:
        """Those with a class noun the base model knows: a new category has no base picture to compare with."""
        index = json.loads(Path(self.spec["subjects"]).read_text())["subjects"]
        return [one for one in index if one["class_noun"] in self.model.description.class_nouns]

    @property
    def instruments(self) -> dict[str, str]:
        """Hashes of what a result depends on besides its parameters."""
        return {"base_hash": self.model.description.hash, "judges_hash": self.judges.hash}

    def is_current(self, result: dict[str, Any]) -> bool:
        """Whether ``result`` was measured on this base by these judges; another is made again."""
        return all(result.get(name) == value for name, value in self.instruments.items())

    def photos(self, subject: dict[str, Any], role: str) -> list[Path]:
        folder = Path(self.spec["subjects"]).parent / subject["slug"]
        return [folder / name for name in subject[role]]

    def params(self, method: str) -> CustomDiffusionParams:
        choice = dict(self.spec["methods"][method])
        preset = choice.pop("preset", None)
        choice.pop("method", None)
        return CustomDiffusionParams(**{**(PRESETS[preset] if preset else {}), **choice})

    def pixels(self, photos: Sequence[Path]) -> Tensor:
        """Photos at the base's resolution: [n, 3, S, S] in [-1, 1]."""
        side = self.model.description.resolution
        images = [
            Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BOX) for path in photos
        ]
        stacked = np.stack([np.asarray(image, np.float32) for image in images])
        return torch.from_numpy(stacked.transpose(0, 3, 1, 2)) / 127.5 - 1

    def draw(self, words: str, edit: TextEdit | None = None, first_seed: int = 0) -> Tensor:
        """One picture for each prompt and seed, prompts outermost: [n, 3, S, S] in [-1, 1]."""
        description = self.model.description
        edits = ((edit, 1.0),) if edit else ()
        pictures = [
            Picture(
                prompt=Prompt(prompt.format(words), edits),
                negative=Prompt("", edits, negative=True),
                seed=seed + first_seed,
                num_inference_steps=self.spec["num_inference_steps"],
                guidance_scale=description.defaults.guidance_scale,
                scheduler=description.defaults.scheduler,
                width=description.resolution,
                height=description.resolution,
            )
            for prompt in self.spec["prompts"]
            for seed in self.spec["image_seeds"]
        ]
        drawn = dict(sample_latents(self.model, pictures, InProcessRun(), "images", batch_size=10))
        with torch.no_grad():
            return torch.cat(
                [self.model.decode_latents(drawn[i][None]).clamp(-1, 1) for i in range(len(pictures))]
            )


@contextmanager
def taught(
    experiment: Experiment, method: str, subject: dict[str, Any], costs: dict[str, Any]
) -> Iterator[TextEdit]:
    """Train ``subject`` by ``method``; while open the model draws it. ``costs`` gets seconds and bytes."""
    params, seed = experiment.params(method), experiment.spec["training_seed"]
    concept = concept_of(subject["slug"], subject["class_noun"], experiment.photos(subject, "train"))
    run, prior_dir = InProcessRun(), experiment.work / "prior"
    began = time.monotonic()
    if method == "fine-tune-all":
        with fine_tuned(experiment.model, concept, params, seed=seed, prior_dir=prior_dir, run=run) as edit:
            size = 4 * sum(p.numel() for p in experiment.model.denoiser.parameters())
            costs.update(seconds=time.monotonic() - began, bytes=size, steps=params.steps)
            yield edit
        return
    chosen = METHODS[experiment.spec["methods"][method].get("method", method)]
    trainee = chosen.trainee(
        experiment.model, [concept], params, seed=seed, prior_dir=prior_dir, previews=[], run=run
    )
    weights = train(experiment.model, [trainee], run)[0]
    costs.update(seconds=time.monotonic() - began, bytes=len(weights.to_bytes()), steps=params.steps)
    installation = chosen.installation(experiment.model, weights)
    with installed(experiment.model, ((installation, 1.0),) if installation else ()):
        yield chosen.edit(experiment.model, weights)


def measured(
    experiment: Experiment, method: str, subject: dict[str, Any]
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """All measures of one training, with the base's pictures and the concept's."""
    judges, noun, prompts = experiment.judges, subject["class_noun"], experiment.spec["prompts"]
    seeds = len(experiment.spec["image_seeds"])
    base = experiment.draw(noun)
    costs: dict[str, Any] = {}
    with taught(experiment, method, subject, costs) as edit:
        mine = experiment.draw(f"<{subject['slug']}> {noun}", edit)
        others = experiment.draw(noun, edit, first_seed=1000)
    photos, true = (experiment.pixels(experiment.photos(subject, role)) for role in ("train", "reference"))

    def rows(pixels: Tensor) -> protocol.Features:
        return judges.subject_features(pixels).numpy()

    scale = protocol.subject_scale(rows(photos), rows(true), rows(base))
    texts = judges.text_features([p.format(noun) for p in prompts for _ in range(seeds)]).numpy()
    nouns = experiment.model.description.class_nouns
    other = nouns[(nouns.index(noun) + len(nouns) // 2) % len(nouns)]
    away = prompts[len(prompts) // 2 :] + prompts[: len(prompts) // 2]
    unrelated = judges.text_features([p.format(other) for p in away for _ in range(seeds)]).numpy()
    seen = judges.image_text_features(base).numpy()
    prompt_scale = protocol.prompt_scale(seen, texts, unrelated)
    untouched = experiment.draw(noun, first_seed=2000)
    images = {name: judges.image_text_features(p).numpy() for name, p in (("mine", mine), ("others", others))}
    zero = protocol.kid(judges.image_text_features(untouched).numpy(), seen)
    per_seed = [protocol.mean_pairwise_cosine(rows(mine)[i::seeds], rows(photos)) for i in range(seeds)]
    candidates = [prompt.format(noun) for prompt in prompts]
    chosen = {name: judges.prompt_choice(p, candidates) for name, p in (("mine", mine), ("base", base))}
    own = torch.arange(len(prompts)).repeat_interleave(seeds)
    result = {
        "method": method,
        "subject": subject["slug"],
        "class_noun": noun,
        **experiment.instruments,
        "subject_similarity": scale.of(protocol.mean_pairwise_cosine(rows(mine), rows(photos))),
        "subject_similarity_per_seed": [scale.of(value) for value in per_seed],
        "subject_anchors": asdict(scale),
        "prompt_similarity": prompt_scale.of(protocol.mean_matched_cosine(images["mine"], texts)),
        "prompt_similarity_of_true_photos": prompt_scale.of(true_photos(experiment, subject)),
        "prompt_anchors": asdict(prompt_scale),
        "place_accuracy": float((chosen["mine"] == own).float().mean()),
        "place_accuracy_of_base": float((chosen["base"] == own).float().mean()),
        "drift": protocol.kid(images["others"], seen) - zero,
        "drift_zero": zero,
        "params": experiment.params(method).model_dump(),
        **costs,
        "environment": environment(),
    }
    return result, base, mine


def true_photos(experiment: Experiment, subject: dict[str, Any]) -> float:
    """Mean cosine of the subject's own photos with their captions ("a photo of a dog in the snow"): what the judge
    gives to perfect pictures of a drawing it has never seen, so the most a concept can be expected to reach.
    """
    key = next(held.key for held in HELD_OUT if held.slug == subject["slug"])
    places = [scene.place for scene in photo_scenes(key, photo_rng(subject["slug"]))]
    where = [PLACES[place][0] if place in PLACES else f"on a {place} background" for place in places]
    photos = experiment.pixels(
        [*experiment.photos(subject, "train"), *experiment.photos(subject, "reference")]
    )
    seen = experiment.judges.image_text_features(photos).numpy()
    read = experiment.judges.text_features(
        [f"a photo of a {subject['class_noun']} {words}" for words in where]
    )
    return protocol.mean_matched_cosine(seen, read.numpy())


def run(path: Path, results: Path, work: Path, only: Sequence[str] = ()) -> None:
    """Run what is missing of the experiment, then write summary and sheet. ``only``: slugs; all when empty."""
    experiment = Experiment.load(path, results, work)
    experiment.folder.mkdir(parents=True, exist_ok=True)
    for method in experiment.spec["methods"]:
        for subject in experiment.subjects:
            file = experiment.folder / f"{method}--{subject['slug']}.json"
            done = file.exists() and experiment.is_current(json.loads(file.read_text()))
            if done or (only and subject["slug"] not in only):
                continue
            result, base, mine = measured(experiment, method, subject)
            keep_pictures(experiment, method, subject, base, mine)
            file.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{method:24} {subject['slug']:10} subject {result['subject_similarity']:.2f} "
                  f"prompt {result['prompt_similarity']:.2f} {result['seconds']:.0f} s", flush=True)  # fmt: skip
    summarise(experiment)


def keep_pictures(
    experiment: Experiment, method: str, subject: dict[str, Any], base: Tensor, mine: Tensor
) -> None:
    """The first seed of each prompt, for the sheet; work files, not results."""
    folder = experiment.work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    step = len(experiment.spec["image_seeds"])
    photos = experiment.pixels(experiment.photos(subject, "train")[:2])
    row = torch.cat([photos, base[:1], mine[::step]])
    strip = torch.cat(list(row), dim=2).permute(1, 2, 0)
    Image.fromarray(((strip + 1) * 127.5).round().byte().numpy()).save(
        folder / f"{method}--{subject['slug']}.png"
    )


def summarise(experiment: Experiment) -> None:
    """``<experiment>.json`` beside the folder, and ``<experiment>-<method>.webp`` where all strips are at hand."""
    files = [json.loads(path.read_text()) for path in sorted(experiment.folder.glob("*.json"))]
    table: dict[str, Any] = {}
    for method in experiment.spec["methods"]:
        rows = [one for one in files if one["method"] == method and experiment.is_current(one)]
        if rows:
            table[method] = {"n": len(rows)} | {
                measure: asdict(protocol.spread([row[measure] for row in rows])) for measure in MEASURES
            }
        strips = [
            experiment.work / "pictures" / f"{method}--{one['slug']}.png" for one in experiment.subjects
        ]
        if strips and all(strip.exists() for strip in strips):
            pixels = np.concatenate([np.asarray(Image.open(strip)) for strip in strips])
            sheet = Image.fromarray(pixels)
            sheet = sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.BICUBIC)
            sheet.save(experiment.folder.parent / f"{experiment.folder.name}-{method}.webp", quality=85)
    summary = {**experiment.instruments, "question": experiment.spec["question"], "methods": table}
    experiment.folder.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
