"""What a training step costs: ours, a bare forward and backward of the denoiser, and the order of the diffusers
example.

``python -m benchmarks.training_step --base worker/base_models/toyworld`` or ``--shape toyworld | sd15`` (random
weights). All kinds take turns in one run, so that whatever else the machine does hits all of them; medians and ratios
are reported. The result goes to ``benchmarks/results/training_step_<name>.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.example_order import ExampleOrder, PixelRows, encode
from benchmarks.shapes import SHAPES
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Conditioning, Prompt, TextEdit, TextKV, text_kv
from worker.ml.families import load_base
from worker.ml.families.stable_diffusion import StableDiffusion
from worker.ml.methods import ConceptExamples
from worker.ml.methods.custom_diffusion import untrained_edit
from worker.ml.run import InProcessRun
from worker.ml.streams import rng
from worker.ml.training.captions import class_prompts, photo_caption
from worker.ml.training.dataset import PRIOR_TOGETHER
from worker.ml.training.loop import Progress, advance
from worker.ml.training.losses import masked_squared_error, with_prior
from worker.ml.training.trainee import Group, Rows, Trainee

RESULTS = Path(__file__).parent / "results"
TOKEN, NOUN = "stark", "dog"
PREFIXES = ("", "", "zoomed in", "zoomed in")
"""What the deck deals to a batch of four: pairs of one caption each, so at most two; prior images come in fours."""


def pixel_rows(model: StableDiffusion, photos: int, seed: int) -> PixelRows:
    """``photos`` rows of noise pictures and as many prior rows, with the captions a training would give them."""
    rows, side = 2 * photos, model.description.resolution
    draw = rng(seed, "benchmark", 0)
    cells = side // model.cell
    classes = class_prompts(NOUN, "subject", model.description.example_prompts)
    captions = [photo_caption(TOKEN, NOUN, "subject", PREFIXES[i % len(PREFIXES)]) for i in range(photos)]
    return PixelRows(
        pixels=torch.rand(rows, 3, side, side, generator=draw) * 2 - 1,
        posterior_noise=torch.randn(rows, model.latent_channels, cells, cells, generator=draw),
        masks=torch.ones(rows, 1, cells, cells),
        captions=[*captions, *(classes[i // PRIOR_TOGETHER] for i in range(photos))],
        prior=[False] * photos + [True] * photos,
    )


def our_trainee(rows: Rows, edit: TextEdit, seed: int) -> Trainee:
    """Custom Diffusion's trainee as the method builds it, with the same rows in every step and no decay."""
    matrices = {f"site.{name}.delta": change.dense().requires_grad_() for name, change in edit.sites.items()}
    words = {f"token.{name}.learned": token.learned.requires_grad_() for name, token in edit.tokens.items()}

    def no_result(steps: int) -> ConceptWeights:
        raise AssertionError("a benchmark keeps nothing")

    return Trainee(
        unit="train",
        seed=seed,
        steps=10**9,
        groups=(Group(matrices, 2e-4, 0.0), Group(words, 2e-3, 0.0)),
        rows=lambda step: rows,
        result=no_result,
        preview=lambda run: [],
        preview_every=0,
        fingerprint="benchmark",
    )


def measure(model: StableDiffusion, photos: int, rounds: int, seed: int, *, split: bool) -> dict[str, Any]:
    given = pixel_rows(model, photos, seed)
    edit = untrained_edit(model, [ConceptExamples(TOKEN, NOUN, "subject", [])])
    start = edit.tokens[TOKEN].start
    distinct = list(dict.fromkeys(given.captions))
    rows = Rows(
        latents=encode(model, given.pixels, given.posterior_noise),
        masks=given.masks,
        prompts=[Prompt(caption, ((edit, 1.0),)) for caption in distinct],
        prompt_of_row=[distinct.index(caption) for caption in given.captions],
        prior=given.prior,
    )
    progress, run = Progress(our_trainee(rows, edit, seed)), InProcessRun()
    example = ExampleOrder(model, TOKEN, start, learning_rate=2e-4, token_learning_rate=2e-3, seed=seed)
    steps = iter(range(10**9))
    bare_states = example_states(model, example, given)
    ours_losses: list[float] = []
    example_losses: list[float] = []
    kinds: dict[str, Callable[[], object]] = {
        "ours": lambda: ours_losses.append(advance(model, [progress], run)[0].total.item()),
        "bare": lambda: bare(model, example, rows, bare_states, seed),
        "bare_to_keys_and_values": lambda: bare_to_keys_and_values(model, rows, seed),
        "example_order": lambda: example_losses.append(example.step(given, next(steps))),
    }
    times = take_turns(kinds, rounds)
    parts = take_turns(parts_of(model, given, rows, edit, progress), rounds) if split else {}
    compared = [abs(a - b) / b for a, b in zip(ours_losses, example_losses, strict=True)]
    return {
        "rows": len(rows.latents),
        "distinct_captions": len(distinct),
        "rounds": rounds,
        "seconds": {name: median(taken) for name, taken in times.items()},
        "ours_over_bare": ratio(times["ours"], times["bare"]),
        "ours_over_bare_to_keys_and_values": ratio(times["ours"], times["bare_to_keys_and_values"]),
        "example_order_over_ours": ratio(times["example_order"], times["ours"]),
        "losses_ours": ours_losses[:5],
        "losses_example_order": example_losses[:5],
        "largest_relative_loss_difference": max(compared[:5]),
        "split_seconds": {name: median(taken) for name, taken in parts.items()},
    }


def bare(model: StableDiffusion, example: ExampleOrder, rows: Rows, states: Tensor, seed: int) -> None:
    """Forward and backward of the denoiser with text states given, gradients for the key and value matrices."""
    noisy, t, target = model.noised(rows.latents, rng(seed, "noise", 0))
    for matrix in example.matrices:
        matrix.grad = None
    with example.installed(detach_first=False):
        prediction = model.denoiser(noisy, t, encoder_hidden_states=states, return_dict=False)[0]
        (prediction - target).square().mean().backward()


def bare_to_keys_and_values(model: StableDiffusion, rows: Rows, seed: int) -> None:
    """The least that text-side training can cost: keys and values are given, and are where the gradient ends."""
    with torch.no_grad():
        ready = text_kv(model, [Prompt(f"photo of a {NOUN}")]).rows([0] * len(rows.latents))
    leaves = Conditioning(
        TextKV(
            tuple(key.detach().requires_grad_() for key in ready.kv.keys),
            tuple(value.detach().requires_grad_() for value in ready.kv.values),
        )
    )
    noisy, t, target = model.noised(rows.latents, rng(seed, "noise", 0))
    loss = (model.predict(noisy, t, leaves) - target).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]


def example_states(model: StableDiffusion, example: ExampleOrder, given: PixelRows) -> Tensor:
    virtual = {TOKEN: range(model.vocabulary_size, model.vocabulary_size + 1)}
    ids = torch.tensor([model.token_ids(caption, virtual) for caption in given.captions])
    with torch.no_grad():
        states: Tensor = example.text_encoder(ids).last_hidden_state
    return states


def parts_of(
    model: StableDiffusion, given: PixelRows, rows: Rows, edit: TextEdit, progress: Progress
) -> dict[str, Callable[[], object]]:
    """The pieces of our step one by one, and the two pieces of the example that ours does without."""
    row = edit.tokens[TOKEN].learned
    virtual = {TOKEN: range(model.vocabulary_size, model.vocabulary_size + 1)}
    live = [prompt.text for prompt in rows.prompts if TOKEN in prompt.text]
    ids = torch.tensor([model.token_ids(text, virtual) for text in live])
    every = torch.tensor([model.token_ids(text, virtual) for text in given.captions])

    def text(chosen: Tensor) -> None:
        loss = model.encode_prompts(chosen, row).states.square().mean()
        loss.backward()  # type: ignore[no-untyped-call]

    def projection() -> None:
        texts = text_kv(model, rows.prompts, detach_first=True, cache=progress.states)
        kv = texts.rows(rows.prompt_of_row).kv
        loss = torch.stack([layer.mean() for layer in (*kv.keys, *kv.values)]).sum()
        loss.backward()  # type: ignore[no-untyped-call]

    def loss_only() -> None:
        with_prior(masked_squared_error(rows.latents, rows.latents, rows.masks), rows.prior, 1.0)

    return {
        "denoiser_forward_and_backward": lambda: bare_to_keys_and_values(model, rows, progress.trainee.seed),
        "text_encoder_distinct_live_captions": lambda: text(ids),
        "text_encoder_and_projection": projection,
        "noise_and_time_steps": lambda: model.noised(rows.latents, rng(0, "noise", 0)),
        "loss": loss_only,
        "optimiser": lambda: progress.optimiser.step(0.0),
        "example_only_autoencoder": lambda: encode(model, given.pixels, given.posterior_noise),
        "example_only_text_encoder_every_row": lambda: text(every),
    }


def take_turns(kinds: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call; every round runs each kind once, each round begins with another kind.

    Seconds are the thread's own processor time, so that other programs on the machine count as little as they can; all
    kinds run on one thread. One unmeasured round first where there are several.
    """
    times: dict[str, list[float]] = {name: [] for name in kinds}
    names = list(kinds)
    for number in range(rounds + (rounds > 2)):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            began = time.thread_time()
            kinds[name]()
            if number or rounds <= 2:
                times[name].append(time.thread_time() - began)
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of the quotient within a round."""
    return median(a / b for a, b in zip(above, below, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--base", type=Path, help="folder of a base model of SD 1.x classes")
    chosen.add_argument("--shape", choices=sorted(SHAPES))
    parser.add_argument(
        "--photos", type=int, default=4, help="photo rows a step; as many prior rows come along"
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument(
        "--pixels", type=int, help="side of the pictures, where it is not the base model's own"
    )
    parser.add_argument("--no-split", action="store_true", help="leave out the cost of the single parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    model = cast(StableDiffusion, load_base(given.base)) if given.base else SHAPES[given.shape]()
    if given.pixels:
        model.description = model.description.model_copy(update={"resolution": given.pixels})
    result = {
        "base": model.description.id,
        "pixels": model.description.resolution,
        "base_hash": model.description.hash if given.base else None,
        "parameters": {
            "denoiser": sum(p.numel() for p in model.denoiser.parameters()),
            "text_encoder": sum(p.numel() for p in model.text_encoder.parameters()),
            "autoencoder": sum(p.numel() for p in model.autoencoder.parameters()),
        },
        "environment": environment(),
        **measure(model, given.photos, given.rounds, given.seed, split=not given.no_split),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    target = given.out / f"training_step_{model.description.id}.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
