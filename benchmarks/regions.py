"""What two regions cost: a call of the denoiser for a guided picture with two boxes against one for a plain prompt.

``python -m benchmarks.regions --shape toyworld sd15`` (random weights: cost depends on shapes). Keys and values are
computed beforehand, as in sampling. Each region has keys and values of its own in the negative row as well, which is
the dearest case (Custom Diffusion; concepts that leave the negative row alone have none there). Both kinds take turns;
seconds are the thread's own processor time. The result goes to ``benchmarks/results/regions_cost.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.shapes import SHAPES
from benchmarks.training_step import RESULTS, ratio, take_turns
from worker.ml.conditioning import Conditioning, Prompt, text_kv
from worker.ml.families.stable_diffusion import StableDiffusion
from worker.ml.regions import BaseShare, Box, Place, Regions

LIMIT = 1.15
"""What two boxes may cost, times a plain prompt."""
BOXES = (Box(0.0, 0.1, 0.45, 0.8), Box(0.5, 0.2, 0.5, 0.7))
SHARE = BaseShare(0.2, 0.2)


def conditionings(model: StableDiffusion) -> tuple[Conditioning, Conditioning]:
    """(plain, with two boxes) of one guided picture: two rows each."""
    with torch.no_grad():
        plain = text_kv(model, [Prompt(""), Prompt("a dog and a cat")])
        texts = [Prompt(""), Prompt("a b"), Prompt("a dog and a dog"), Prompt("a cat and a cat")]
        kv = text_kv(model, texts).kv
    places = tuple(Place(box, BOXES, SHARE) for box in BOXES)
    return plain, replace(plain, regions=Regions(kv, (0, 0, 1, 1), (*places, *places)))


def measure(model: StableDiffusion, pictures: int, rounds: int, seed: int) -> dict[str, Any]:
    """Seconds of both kinds and their ratio, ``pictures`` guided pictures at once."""
    plain, boxed = (each.rows([0] * pictures + [1] * pictures) for each in conditionings(model))
    cells = model.description.resolution // model.cell
    draw = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2 * pictures, model.latent_channels, cells, cells, generator=draw)

    def forward(conditioning: Conditioning) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return model.predict(noisy, torch.tensor(500), conditioning.at(0.5))

        return call

    times = take_turns({"plain": forward(plain), "two_boxes": forward(boxed)}, rounds)
    found = ratio(times["two_boxes"], times["plain"])
    return {
        "pixels": model.description.resolution,
        "pictures": pictures,
        "rows": 2 * pictures,
        "rounds": rounds,
        "seconds": {name: median(taken) for name, taken in times.items()},
        "two_boxes_over_plain": found,
        "limit": LIMIT,
        "within_limit": found <= LIMIT,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    target = given.out / "regions_cost.json"
    kept = json.loads(target.read_text())["shapes"] if target.exists() else {}
    for shape in given.shape:
        kept[shape] = {**measure(SHAPES[shape](), given.pictures, given.rounds, given.seed), **environment()}
        given.out.mkdir(parents=True, exist_ok=True)
        question = "What do two boxes cost on the denoiser alone?"
        target.write_text(json.dumps({"question": question, "shapes": kept}, indent=2) + "\n")
    print(json.dumps(kept, indent=2))


if __name__ == "__main__":
    main()
