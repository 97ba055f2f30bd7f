"""What the shipped base model can do, in numbers: `measures.json`.

Everything is measured on the folder that ships (half precision, drawn with the studio's own engine and the
base's own defaults). A judge's verdict on generated pictures is given beside its verdict on true scenes of
the same kind, because a judge errs too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worker.ml.conditioning import Prompt
from worker.ml.evaluation.judges import Judges, load_judges
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun
from worker.ml.sampling.latents import Picture, sample_latents
from worker.ml.toyworld.autoencoder import scene_pixels
from worker.ml.toyworld.captions import caption
from worker.ml.toyworld.judge_training import Individual, portrait
from worker.ml.toyworld.places import Array, Rng
from worker.ml.toyworld.scenes import Placed, Scene, SpriteBank, draw, sample_scene
from worker.ml.toyworld.world import COLOURS, DRAWN_NOUNS, HELD_OUT, PLACES, held_out_combination

SIDE = 64
DIVERSITY_NOUNS = ("dog", "cat", "teapot", "fox", "owl", "penguin")


@dataclass
class Bench:
    """The base, its judges, sprites to draw true scenes from, and how much to measure."""

    model: DiffusionModel
    judges: Judges
    bank: SpriteBank
    photos: Path
    prompts: int = 96
    seeds: int = 16
    guidance: float | None = None

    @staticmethod
    def of(base: Path, bank: SpriteBank, photos: Path, prompts: int = 96, seeds: int = 16) -> Bench:
        return Bench(load_base(base), load_judges(base / "judges"), bank, photos, prompts, seeds)

    def drawn(self, prompts: list[str], first_seed: int = 0) -> Tensor:
        """One picture a prompt, seeds counting up: [n, 3, 64, 64] in [-1, 1]."""
        defaults = self.model.description.defaults
        guidance = defaults.guidance_scale if self.guidance is None else self.guidance
        pictures = [
            Picture(
                prompt=Prompt(text, ()),
                negative=Prompt("", (), negative=True),
                seed=first_seed + number,
                num_inference_steps=defaults.num_inference_steps,
                guidance_scale=guidance,
                scheduler=defaults.scheduler,
                width=SIDE,
                height=SIDE,
            )
            for number, text in enumerate(prompts)
        ]
        latents = dict(sample_latents(self.model, pictures, InProcessRun(), "images", batch_size=12))
        with torch.no_grad():
            return torch.cat(
                [self.model.decode_latents(latents[i][None]).clamp(-1, 1) for i in range(len(pictures))]
            )


def pixels_of(pictures: list[Array]) -> Tensor:
    """[n, 3, S, S] in [-1, 1] from float32 [S, S, 3] in [0, 1]."""
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy()) * 2 - 1


@dataclass(frozen=True)
class Question:
    """A prompt with its true scene and, for each thing that is asked, the candidates and which are right."""

    prompt: str
    scene: Scene
    choices: dict[str, tuple[list[str], set[int]]]


def single_questions(bank: SpriteBank, rng: Rng, count: int) -> list[Question]:
    """One coloured object at a place, in combinations that were never trained on."""
    combinations_ = [
        (noun, colour, place)
        for noun in DRAWN_NOUNS
        for colour in COLOURS
        for place in PLACES
        if held_out_combination(noun, colour, place)
    ]
    chosen = [combinations_[i] for i in rng.permutation(len(combinations_))[:count]]
    return [_single(bank, rng, *words) for words in chosen]


def _single(bank: SpriteBank, rng: Rng, noun: str, colour: str, place: str) -> Question:
    def text(n: str, c: str, p: str) -> str:
        return f"a photo of a {c} {n} {PLACES[p][0]}"

    keys = bank.trained(noun)
    placed = Placed(keys[int(rng.integers(len(keys)))], colour, 0.58, 0.5, 0.56)
    choices = {
        "object": ([text(n, colour, place) for n in DRAWN_NOUNS], {DRAWN_NOUNS.index(noun)}),
        "colour": ([text(noun, c, place) for c in COLOURS], {list(COLOURS).index(colour)}),
        "place": ([text(noun, colour, p) for p in PLACES], {list(PLACES).index(place)}),
    }
    scene = Scene((placed,), place, "photo", "normal", int(rng.integers(2**31)))
    return Question(text(noun, colour, place), scene, choices)


def pair_questions(bank: SpriteBank, rng: Rng, count: int) -> list[Question]:
    """Two objects of different classes at a place; both must be named, in either order."""
    pairs = list(combinations(DRAWN_NOUNS, 2))
    named = list(permutations(DRAWN_NOUNS, 2))
    questions = []
    for i in rng.permutation(len(pairs))[:count]:
        pair = pairs[int(i)]
        place = str(rng.choice(list(PLACES)))
        candidates = [f"a photo of a {one} and a {other} {PLACES[place][0]}" for one, other in named]
        right = {number for number, names in enumerate(named) if set(names) == set(pair)}
        objects = tuple(
            Placed(bank.trained(noun)[int(rng.integers(len(bank.trained(noun))))], None, 0.43, x, 0.56)
            for noun, x in zip(pair, (0.26, 0.74), strict=True)
        )
        scene = Scene(objects, place, "photo", "normal", int(rng.integers(2**31)))
        prompt = f"a photo of a {pair[0]} and a {pair[1]} {PLACES[place][0]}"
        questions.append(Question(prompt, scene, {"both of a pair": (candidates, right)}))
    return questions


def accuracy(judges: Judges, questions: list[Question], pixels: Tensor) -> dict[str, float]:
    """Share of pictures of which the judge chooses a right candidate, for each thing asked."""
    hits: dict[str, list[bool]] = {}
    for question, one in zip(questions, pixels, strict=True):
        for asked, (candidates, right) in question.choices.items():
            hits.setdefault(asked, []).append(int(judges.prompt_choice(one[None], candidates)) in right)
    return {asked: round(float(np.mean(found)), 4) for asked, found in hits.items()}


def prompt_accuracy(bench: Bench, rng: Rng) -> dict[str, dict[str, float]]:
    """By the judge: on generated pictures, and on true scenes of the very same words."""
    questions = single_questions(bench.bank, rng, bench.prompts)
    pairs = pair_questions(bench.bank, rng, bench.prompts // 2)
    result: dict[str, dict[str, float]] = {"generated": {}, "true scenes": {}}
    for asked in (questions, pairs):
        result["generated"] |= accuracy(bench.judges, asked, bench.drawn([q.prompt for q in asked]))
        true = pixels_of([draw(q.scene, bench.bank, SIDE) for q in asked])
        result["true scenes"] |= accuracy(bench.judges, asked, true)
    return result


def autoencoder_psnr(bench: Bench, rng: Rng, count: int = 128) -> dict[str, float]:
    """Round trip of fresh scenes through the shipped autoencoder, dB: mean, and the tenth percentile."""
    pixels = scene_pixels(bench.bank, rng, count, SIDE)
    back = torch.cat(
        [bench.model.decode_latents(bench.model.encode_images(part)) for part in torch.split(pixels, 16)]
    )
    each = 10 * torch.log10(4.0 / ((back.clamp(-1, 1) - pixels) ** 2).mean((1, 2, 3)))
    return {
        "mean_db": round(float(each.mean()), 2),
        "tenth_percentile_db": round(float(each.quantile(0.1)), 2),
    }


def diversity(bench: Bench, rng: Rng) -> dict[str, dict[str, int]]:
    """For a plain prompt over seeds: how many designers' drawings come, by the nearest true portrait."""
    result = {}
    for noun in DIVERSITY_NOUNS:
        keys = bench.bank.trained(noun)
        views = [
            draw(portrait(Individual(key, None), rng), bench.bank, SIDE) for key in keys for _ in range(6)
        ]
        centres = bench.judges.subject_features(pixels_of(views)).view(len(keys), 6, -1).mean(1)
        pictures = bench.drawn([f"a photo of a {noun} on grass"] * bench.seeds)
        nearest = (bench.judges.subject_features(pictures) @ centres.T).argmax(1)
        result[noun] = {"designers": len(set(nearest.tolist())), "of": len(keys), "seeds": bench.seeds}
    return result


# ---- the judges themselves


def area_under_curve(positive: Array, negative: Array) -> float:
    """Probability that a positive score exceeds a negative one (ties count half)."""
    above = (positive[:, None] > negative[None, :]).mean()
    equal = (positive[:, None] == negative[None, :]).mean()
    return float(above + 0.5 * equal)


def photo_pixels(folder: Path, slug: str, numbers: range) -> Tensor:
    """Shipped photos at 64 px: [n, 3, 64, 64] in [-1, 1]."""
    images = [Image.open(folder / slug / f"{n:02d}.webp").convert("RGB") for n in numbers]
    small = [
        np.asarray(i.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / np.float32(255) for i in images
    ]
    return pixels_of(small)


def subject_ranking(bench: Bench, rng: Rng, views: int = 10) -> dict[str, float]:
    """Held-out subjects: cosine of two photos of one subject, against a photo and another designer's drawing
    of the class.
    """
    same, other, far = [], [], []
    features = {
        s.slug: bench.judges.subject_features(photo_pixels(bench.photos, s.slug, range(10))) for s in HELD_OUT
    }
    for subject in HELD_OUT:
        mine = features[subject.slug]
        cosines = (mine @ mine.T).numpy()
        same.append(cosines[np.triu_indices(len(mine), 1)])
        keys = bench.bank.trained(subject.noun)
        drawn = [
            draw(portrait(Individual(key, None), rng), bench.bank, SIDE) for key in keys for _ in range(views)
        ]
        other.append((mine @ bench.judges.subject_features(pixels_of(drawn)).T).numpy().ravel())
        far += [(mine @ features[s.slug].T).numpy().ravel() for s in HELD_OUT if s.slug != subject.slug]
    each = [area_under_curve(s, o) for s, o in zip(same, other, strict=True)]
    return {
        "auc_same_subject_against_same_class": round(
            area_under_curve(np.concatenate(same), np.concatenate(other)), 4
        ),
        "auc_within_each_subject_mean": round(float(np.mean(each)), 4),
        "auc_within_each_subject_lowest": round(float(np.min(each)), 4),
        "auc_same_subject_against_other_subjects": round(
            area_under_curve(np.concatenate(same), np.concatenate(far)), 4
        ),
        "mean_cosine_same_subject": round(float(np.concatenate(same).mean()), 4),
        "mean_cosine_same_class": round(float(np.concatenate(other).mean()), 4),
    }


def retrieval(bench: Bench, rng: Rng, count: int = 256) -> dict[str, float]:
    """Fresh scenes and their captions: how often the right caption of ``count`` comes first, and the right
    picture.
    """
    scenes = [sample_scene(bench.bank, rng) for _ in range(count)]
    seen = bench.judges.image_text_features(pixels_of([draw(s, bench.bank, SIDE) for s in scenes]))
    read = bench.judges.text_features([caption(s, rng) for s in scenes])
    scores, truth = seen @ read.T, torch.arange(count)
    top5 = (scores.topk(5, 1).indices == truth[:, None]).any(1)
    return {
        "scenes": count,
        "picture_to_caption_top1": round(float((scores.argmax(1) == truth).float().mean()), 4),
        "picture_to_caption_top5": round(float(top5.float().mean()), 4),
        "caption_to_picture_top1": round(float((scores.argmax(0) == truth).float().mean()), 4),
    }


# ---- training


def curve(log: Path, points: int = 12) -> dict[str, object]:
    """What a training log says: samples, seconds, and the loss at evenly spaced steps."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    samples, last = 0, 0
    for entry in lines:
        samples, last = samples + (entry["step"] - last) * entry.get("batch", 16), entry["step"]
    chosen = [lines[round(i)] for i in np.linspace(0, len(lines) - 1, min(points, len(lines)))]
    return {
        "samples": samples,
        "steps": last,
        "seconds": lines[-1]["spent_s"] if lines else 0,
        "loss": [[entry["step"], entry["loss"]] for entry in chosen],
    }


def measure(bench: Bench, work: Path) -> dict[str, Any]:
    """All measures; a few minutes on a CPU."""
    parts: dict[str, Callable[[Rng], object]] = {
        "prompt_accuracy": lambda rng: prompt_accuracy(bench, rng),
        "autoencoder_psnr": lambda rng: autoencoder_psnr(bench, rng),
        "diversity": lambda rng: diversity(bench, rng),
        "judges": lambda rng: {
            "image_text_retrieval": retrieval(bench, rng),
            "subject_ranking": subject_ranking(bench, rng),
        },
    }
    measured: dict[str, Any] = {
        "base_hash": bench.model.description.hash,
        "judges_hash": bench.judges.hash,
        "prompts": bench.prompts,
    }
    for number, (name, part) in enumerate(parts.items()):
        measured[name] = part(np.random.default_rng([11, number]))
    logs = {"autoencoder": "autoencoder.jsonl", "denoiser": "denoiser.jsonl", "decoder polish": "polish.jsonl",
            "image-text judge": "judges/image_text.jsonl", "subject judge": "judges/subject.jsonl"}  # fmt: skip
    measured["training"] = {name: curve(work / file) for name, file in logs.items() if (work / file).exists()}
    return measured
