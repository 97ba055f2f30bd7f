"""What every quality benchmark does with a taught concept: draw, have the judges look, put numbers into a result."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from backend.schemas.bases import JudgesDescription
from backend.schemas.evaluations import Measure
from benchmarks.targets import Taught
from worker.ml.calibration import calibrated
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.evaluation.measures import Plan, Sight, Sights, Sitting, grade, photo_pixels, sight
from worker.ml.evaluation.panel import Panel, describe_panel, load_panel
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import Installation
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun

LABEL_PX = 110

Learned = Callable[[], AbstractContextManager[tuple[TextEdit, Installation, float]]]
"""While open, the edit and the installation it gives are what was learned, and the scale is the edit's."""


@dataclass
class Bench:
    """An experiment file with its base and judges loaded once. What the judges saw of the base is kept by target."""

    spec: dict[str, Any]
    folder: Path
    work: Path
    model: DiffusionModel
    panel: Panel
    of_base: dict[str, tuple[Sight, Sight, Tensor]] = field(default_factory=dict)

    @staticmethod
    def load(path: Path, results: Path, work: Path) -> Bench:
        """``results/<name of the file>`` gets a result for every training."""
        spec = json.loads(path.read_text())
        base = Path(spec["base"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        judges = [Path(folder) for folder in spec.get("judges", ())]
        if describe_panel(base, judges) is None:
            raise SystemExit(f"nobody judges pictures of {base}")
        return Bench(
            spec, results / path.stem, work, load_base(base, device), load_panel(base, judges, device)
        )

    @property
    def instruments(self) -> dict[str, str]:
        """Hashes of what a result depends on besides its parameters."""
        return {"base_hash": self.model.description.hash, "judges_hash": self.panel.hash}

    def is_current(self, result: dict[str, Any]) -> bool:
        """Whether ``result`` was measured on this base by these judges; another is made again."""
        return all(result.get(name) == value for name, value in self.instruments.items())

    def plan(self, taught: Taught) -> Plan:
        """Prompts of the target's kind, with every image seed."""
        prompts = self.spec["style_prompts"] if taught.kind == "style" else self.spec["prompts"]
        return Plan(tuple(prompts), tuple(self.spec["image_seeds"]), self.spec["num_inference_steps"])


def graded(bench: Bench, taught: Taught, learned: Learned) -> tuple[dict[str, Any], Tensor, Tensor]:
    """The measures of one training, the base's pictures and the concept's: [prompts x seeds, 3, S, S] in [-1, 1].

    The base is drawn before ``learned`` is opened: what it opens may change the base itself.
    """
    shown: dict[str, list[Tensor]] = {}
    sitting = Sitting(
        bench.model,
        bench.panel,
        bench.plan(taught),
        InProcessRun(),
        show=lambda which, _place, pixels: shown.setdefault(which, []).append(pixels),
    )
    if taught.slug not in bench.of_base:
        base, again = sitting.base(taught.target)
        bench.of_base[taught.slug] = base, again, torch.cat(shown["base"])
    base, again, base_pixels = bench.of_base[taught.slug]
    with learned() as (edit, installation, scale):
        own, others = sitting.taught(taught.target, edit, installation, scale=scale)
    side = bench.model.description.resolution
    photos, true = (
        sight(bench.panel, photo_pixels(role, side)) for role in (taught.photos, taught.reference)
    )
    grades = grade(sitting, taught.target, Sights(base, again, own, others), photos, true)
    subject, prompt, drift = (
        decided(name, getattr(grades, name)) for name in ("subject_similarity", "prompt_similarity", "drift")
    )
    result = {
        "subject_similarity": subject.value,
        "subject_similarity_per_seed": subject.per_seed,
        "subject_anchors": {"zero": subject.zero, "one": subject.one},
        "prompt_similarity": prompt.value,
        "prompt_similarity_per_seed": prompt.per_seed,
        "prompt_anchors": {"zero": prompt.zero, "one": prompt.one},
        "place_accuracy": prompt_accuracy(sitting, taught, own),
        "place_accuracy_of_base": prompt_accuracy(sitting, taught, base),
        "drift": drift.raw - drift.zero,
        "drift_zero": drift.zero,
        "drift_per_seed": [share * (drift.one - drift.zero) for share in drift.per_seed],
        "drift_share": drift.value,
    }
    return result, base_pixels, torch.cat(shown["own"])


def calibrated_by(
    bench: Bench, weights: ConceptWeights, taught: Taught
) -> tuple[ConceptWeights, dict[str, Any]]:
    """The weights as the studio leaves them after a training, and the scales it tried."""
    judges = JudgesDescription(name="the bench", hash=bench.panel.hash)
    found, calibration = calibrated(
        bench.model, bench.panel, judges, weights, [taught.examples], run=InProcessRun()
    )
    return found, {"scale": calibration.scale, "tried": [p.model_dump() for p in calibration.points]}


def acting(model: DiffusionModel, weights: ConceptWeights) -> tuple[TextEdit, Installation, float]:
    """What the weights do at the scale of their manifest."""
    reader, scale = reader_of(weights), weights.manifest.scale
    installation = reader.installation(model, weights)
    put = ((installation, scale),) if installation is not None else ()
    return reader.edit(model, weights), put, scale


def decided(name: str, measure: Measure) -> Measure:
    """The measure, if its anchors differ. Raises ValueError."""
    if measure.value is None:
        raise ValueError(f"{name}: the judges see no difference between {measure.zero} and {measure.one}")
    return measure


def prompt_accuracy(sitting: Sitting, taught: Taught, seen: Sight) -> float:
    """The share of pictures for which the judge finds, among all prompts, the one they were drawn from."""
    texts = sitting.panel.text_features(
        [taught.target.plain(prompt) for prompt in sitting.plan.prompts]
    ).numpy()
    own = np.arange(len(sitting.plan.prompts)).repeat(len(sitting.plan.image_seeds))
    return float(((seen.image_text @ texts.T).argmax(1) == own).mean())


def strip(pixels: Tensor) -> NDArray[np.uint8]:
    """Pictures [n, 3, S, S] in [-1, 1] side by side: uint8 [S, n S, 3]."""
    row = torch.cat(list(pixels), dim=2).permute(1, 2, 0)
    found: NDArray[np.uint8] = ((row + 1) * 127.5).round().byte().numpy()
    return found


def labelled(words: str, row: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The row [side, w, 3] with its name in a white cell before it."""
    cell = Image.new("RGB", (LABEL_PX, len(row)), "white")
    height = 6 * (words.count("\n") + 1)
    ImageDraw.Draw(cell).multiline_text((4, len(row) // 2 - height), words, fill="black")
    return np.concatenate([np.asarray(cell), row], axis=1)


def save_sheet(rows: list[NDArray[np.uint8]], file: Path, scale: int = 2) -> None:
    """Rows of equal width under one another, enlarged, as WebP."""
    sheet = Image.fromarray(np.concatenate(rows))
    sheet = sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.BICUBIC)
    sheet.save(file, quality=70)


def write_json(file: Path, content: Any) -> None:
    """Whole or not at all: another process may read it meanwhile."""
    staged = file.with_suffix(f".{os.getpid()}.tmp")
    staged.write_text(json.dumps(content, indent=1) + "\n")
    staged.replace(file)
