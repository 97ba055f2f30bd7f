"""What a step of every method costs beside a bare forward and backward with the same trainable tensors and rows.

``python -m benchmarks.method_steps`` on toyworld writes ``results/method_steps.json``, with the profile of the method
whose ratio is the worst. ``--memory`` does one step of each of ``--methods`` at Stable Diffusion 1.5 shapes (random
weights), each in a process of its own, and writes ``results/method_memory.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from backend.schemas.methods import CARDS
from benchmarks.environment import environment
from benchmarks.one_training import peak_bytes, set_back_peak
from benchmarks.shapes import SHAPES
from benchmarks.training_step import RESULTS, ratio, take_turns
from worker.ml.conditioning import Conditioning, text_kv
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import InProcessRun
from worker.ml.streams import rng
from worker.ml.training.loop import Progress, advance
from worker.ml.training.losses import masked_squared_error, with_prior
from worker.ml.training.trainee import Trainee

BASE = Path("worker/base_models/toyworld")
PHOTOS = sorted(Path("backend/sample_photos/stark").glob("*.webp"))[:5]
SEED = 0
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{method: (method, {}) for method in METHODS},
    "lora, dora": ("lora", {"use_dora": True}),
}
"""Every method of the registry, and what is a switch of one but another step."""
LISTED = 12
"""Operations of the profile that are written down."""


def trainee_of(model: DiffusionModel, method: str, folder: Path, **overrides: Any) -> Trainee:
    """As the Balanced preset trains the first sample subject."""
    card = CARDS[method]
    known = {name: value for name, value in overrides.items() if name in card.params_type.model_fields}
    params = card.params_type(**{**card.presets_for(model.description)["balanced"], **known})
    concept = ConceptExamples("stark", "dog", "subject", PHOTOS)
    return METHODS[method].trainee(
        model, [concept], params, seed=SEED, prior_dir=folder, previews=[], run=InProcessRun()
    )


def bare(model: DiffusionModel, progress: Progress) -> Callable[[], None]:
    """Text to keys and values, denoiser, loss, and back to every trainable tensor; rows and noise are there already."""
    trainee = progress.trainee
    rows = trainee.rows(0)
    noisy, t, target = model.noised(rows.latents, rng(SEED, "noise", 0))

    def forward_and_backward() -> None:
        progress.optimiser.clear_gradients()
        texts = text_kv(
            model,
            rows.prompts,
            detach_first=trainee.detach_first,
            cache=progress.states,
            encoder_gradient=trainee.trains_text_encoder,
        )
        predicted = model.predict(noisy, t, Conditioning.concatenated([texts.rows(rows.prompt_of_row)]))
        losses = masked_squared_error(predicted, target, rows.masks)
        total = with_prior(losses, rows.prior, trainee.prior_weight).total
        total.backward()  # type: ignore[no-untyped-call]

    return forward_and_backward


def step_costs(model: DiffusionModel, folder: Path, rounds: int) -> dict[str, Any]:
    """{row: seconds of both, their ratio within a round, rows of a step}."""
    found: dict[str, Any] = {}
    for row, (method, changed) in ROWS.items():
        trainee = trainee_of(model, method, folder, **changed)
        with trainee.installed():
            progress, run = Progress(trainee), InProcessRun()
            kinds: dict[str, Callable[[], object]] = {
                "step": lambda progress=progress, run=run: advance(model, [progress], run),  # type: ignore[misc]
                "bare": bare(model, progress),
            }
            times = take_turns(kinds, rounds)
        found[row] = {
            "rows": len(trainee.rows(0).latents),
            "trained_numbers": sum(tensor.numel() for tensor in trainee.tensors().values()),
            "seconds": {name: median(taken) for name, taken in times.items()},
            "step_over_bare": ratio(times["step"], times["bare"]),
        }
        print(f"{row:20} {found[row]['step_over_bare']:.3f}", flush=True)
    return found


def profiled(model: DiffusionModel, row: str, folder: Path) -> list[dict[str, Any]]:
    """Operations of five steps by their own processor time, the largest first."""
    method, changed = ROWS[row]
    trainee = trainee_of(model, method, folder, **changed)
    with trainee.installed():
        progress, run = Progress(trainee), InProcessRun()
        advance(model, [progress], run)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(5):
                advance(model, [progress], run)
    averages = sorted(seen.key_averages(), key=lambda each: -each.self_cpu_time_total)
    total = sum(each.self_cpu_time_total for each in averages)
    return [
        {"operation": each.key, "calls": each.count, "share": each.self_cpu_time_total / total}
        for each in averages[:LISTED]
    ]


def one_step_memory(method: str, pixels: int) -> dict[str, Any]:
    """The most resident memory of one whole step, the model's own weights among it."""
    model = SHAPES["sd15"]()
    model.description = model.description.model_copy(update={"resolution": pixels})
    with tempfile.TemporaryDirectory() as folder:
        trainee = trainee_of(
            model,
            method,
            Path(folder),
            batch_size=1,
            augment=False,
            prior="none",
            prior_weight=0.0,
            gradient_checkpointing=False,
        )
        set_back_peak()
        with trainee.installed():
            advance(model, [Progress(trainee)], InProcessRun())
    return {"method": method, "pixels": pixels, "rows": 1, "peak_memory_bytes": peak_bytes()}


def memory(methods: list[str], pixels: int) -> dict[str, Any]:
    """Each in a process of its own; also the shares of DreamBooth's."""
    found = {}
    for method in methods:
        call = [sys.executable, "-m", "benchmarks.method_steps", "--one", method, "--pixels", str(pixels)]
        answer = subprocess.run(call, check=True, capture_output=True, text=True)
        found[method] = json.loads(answer.stdout.splitlines()[-1])
        print(answer.stdout.splitlines()[-1], flush=True)
    most = found.get("dreambooth", {}).get("peak_memory_bytes")
    shares = {name: one["peak_memory_bytes"] / most for name, one in found.items()} if most else {}
    return {"base": "sd15 shapes, random weights", "methods": found, "share_of_dreambooth": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--methods", default="custom-diffusion,dreambooth")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--one", help="one step of this method in this process (used by --memory)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(one_step_memory(given.one, given.pixels)))
        return
    if given.memory:
        result = {**memory(given.methods.split(","), given.pixels), "environment": environment()}
        (RESULTS / "method_memory.json").write_text(json.dumps(result, indent=1) + "\n")
        return
    model = load_base(BASE)
    with tempfile.TemporaryDirectory() as folder:
        costs = step_costs(model, Path(folder), given.rounds)
        slowest = max(costs, key=lambda row: costs[row]["step_over_bare"])
        result = {
            "base": model.description.id,
            "base_hash": model.description.hash,
            "environment": environment(),
            "methods": costs,
            "slowest": {"method": slowest, "profile": profiled(model, slowest, Path(folder))},
        }
    (RESULTS / "method_steps.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
