"""An executor without tensors: the same pipe, the same files, seconds instead of minutes.

``python -m tests.worker.drill`` is a supervisor whose executor does drills. What a drill does in a job is told by
``params`` of a training, and by words such as ``step_s=0.1`` in the prompt of a generation:

``steps`` (10), ``step_s`` (0.01), ``checkpoint_every`` (0: never), ``die_at`` step with ``signal`` (9) for the first
``deaths`` attempts (1), ``deaf`` (ignore every request), ``fail`` code with ``retryable`` and ``sticky``, ``nan`` in
the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from backend.schemas.bases import BaseDescription
from backend.schemas.executor import Checkpointed, Preview, Ready, RunJob, Succeeded
from backend.schemas.generations import GenerateSpec
from backend.schemas.trainings import TrainSpec
from backend.schemas.weights import TaughtToken, WeightsManifest
from worker.executor import Ended, JobFailed, JobStopped
from worker.pipe_run import Reporter
from worker.recipes import image_recipe, png_chunks

BASE = BaseDescription(
    id="drill", family="drill", title="Drill", resolution=64, size_multiple=8, max_size=128, hash="d" * 64,
    methods=["custom-diffusion"], defaults={}, prompt_limit_tokens=77,
    tokenizer_json=Tokenizer(WordLevel({"x": 0}, unk_token="x")).to_str(),  # type: ignore[arg-type]
)  # fmt: skip


class Drill:
    """One drill at a time."""

    def start(self, config: dict[str, Any]) -> Ready:
        return Ready(device="drill", bases=[BASE], base_folders={BASE.id: ""})

    def handle(self, job: RunJob, reporter: Reporter) -> Succeeded:
        return (self._train if job.kind == "train" else self._generate)(job, reporter)

    def handle_together(self, reporters: Sequence[Reporter], ended: Ended) -> None:
        """Rounds of one picture of each job; ``fail`` in one spoils the round for all, as a shared call does."""
        left = list(reporters)
        for index in range(8):
            for reporter in list(left):
                spec = GenerateSpec.model_validate(reporter.job.spec)
                told = dict(word.split("=") for word in spec.prompt.split() if "=" in word)
                self._hardship(reporter.job, told, index, reporter)
                time.sleep(float(told.get("step_s", 0.01)))
                if index not in reporter.drawn:
                    self._draw(spec, index, reporter)
                done = index + 1 == spec.num_images
                if done or reporter.asked is not None:
                    left.remove(reporter)
                    words = "cancelled" if reporter.asked == "cancel" else "released"
                    ended(reporter, self._drawn(reporter) if done else JobStopped(words))

    def verdict(self, error: BaseException) -> JobFailed:
        return JobFailed("internal", "The drill went wrong.")

    def _train(self, job: RunJob, reporter: Reporter) -> Succeeded:
        spec = TrainSpec.model_validate(job.spec)
        told = {"steps": 10, "step_s": 0.01, "checkpoint_every": 0, **spec.params}
        kept = Path(job.checkpoints) / "step.json"
        first = json.loads(kept.read_text())["step"] if kept.exists() else 0
        if first:
            reporter.note("resumed", f"Resumed after step {first}.")
        picture(spec.seed).save(reporter.staging / "preview.png")
        reporter.send(Preview(**reporter.tag, step=0, index=0, prompt="x", file="preview.png"))
        step = first
        while step < told["steps"]:
            self._hardship(job, told, step, reporter)
            time.sleep(told["step_s"])
            step += 1
            reporter.loss(step, 1.0 / step)
            reporter.progress("training", step, told["steps"])
            asked = None if told.get("deaf") else reporter.asked
            if asked == "finish":
                break
            if (told["checkpoint_every"] and step % told["checkpoint_every"] == 0) or asked == "release":
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps({"step": step}))
                reporter.send(Checkpointed(**reporter.tag, step=step))
            if asked is not None:
                raise JobStopped("cancelled" if asked == "cancel" else "released")
        file = reporter.staging / "weights.safetensors"
        file.write_bytes(weights(spec, step, poisoned=bool(told.get("nan"))))
        return Succeeded(
            **reporter.tag, files={"weights": file.name}, report={"steps": step, "analysis": None}
        )

    def _generate(self, job: RunJob, reporter: Reporter) -> Succeeded:
        spec = GenerateSpec.model_validate(job.spec)
        told = dict(word.split("=") for word in spec.prompt.split() if "=" in word)
        for index in range(spec.num_images):
            self._hardship(job, told, index, reporter)
            if index in reporter.drawn:
                continue
            time.sleep(float(told.get("step_s", 0.01)))
            if reporter.asked is not None:
                raise JobStopped("cancelled" if reporter.asked == "cancel" else "released")
            self._draw(spec, index, reporter)
        return self._drawn(reporter)

    def _draw(self, spec: GenerateSpec, index: int, reporter: Reporter) -> None:
        reporter.progress("drawing", index + 1, spec.num_images)
        file = reporter.staging / f"{index}.png"
        recipe = image_recipe(spec, index)
        picture(recipe.seed, (spec.width, spec.height)).save(file, pnginfo=png_chunks(recipe))
        reporter.image(index, recipe.seed, file)

    def _drawn(self, reporter: Reporter) -> Succeeded:
        return Succeeded(**reporter.tag, files={}, report={})

    def _hardship(self, job: RunJob, told: dict[str, Any], step: int, reporter: Reporter) -> None:
        if "fail" in told:
            retryable, sticky = bool(told.get("retryable")), bool(told.get("sticky"))
            raise JobFailed(
                told["fail"], "The drill failed as it was told to.", retryable=retryable, sticky=sticky
            )
        if step != int(told.get("die_at", -1)):
            return
        deaths = Path(job.checkpoints) / "deaths"
        deaths.parent.mkdir(parents=True, exist_ok=True)
        so_far = int(deaths.read_text()) if deaths.exists() else 0
        if so_far < int(told.get("deaths", 1)):
            deaths.write_text(str(so_far + 1))
            reporter.flush()
            os.kill(os.getpid(), int(told.get("signal", 9)))
            time.sleep(60)


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A flat picture whose colour is a function of the seed."""
    colour = hashlib.sha256(str(seed).encode()).digest()[:3]
    return Image.new("RGB", size, tuple(colour))


def weights(spec: TrainSpec, steps: int, *, poisoned: bool = False) -> bytes:
    """A small weights file: a function of spec and steps only."""
    manifest = WeightsManifest(
        method=spec.method, side="text", base=spec.base, base_family="drill", base_hash=spec.base_hash,
        prediction_type="epsilon", params=spec.params, seed=spec.seed, steps=steps, code_version="0",
        tokens=[TaughtToken(token=c.token, class_noun=c.class_noun, kind=c.kind) for c in spec.concepts],
    )  # fmt: skip
    values = np.random.default_rng(spec.seed).standard_normal(64).astype("<f4")
    if poisoned:
        values[3] = np.nan
    header = {
        "__metadata__": {"moongate": manifest.model_dump_json()},
        "site.a.delta": {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 256]},
    }
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + values.tobytes()


def handlers() -> Drill:
    """What ``worker.executor`` asks this module for."""
    return Drill()


if __name__ == "__main__":
    from worker import supervisor
    from worker.__main__ import main
    from worker.supervisor import Trade

    supervisor.GIVES_WAY_AFTER_S = 0.5
    sys.exit(main(Trade("tests.worker.drill", {"train": 1, "generate": 1})))
