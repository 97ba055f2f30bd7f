"""`make base-model`: everything that ships of toyworld, from icon packages to weights, card and sample photos.

Stages run one after another; each keeps its state in the work folder and goes on from there, so that the
command may be stopped and started at will. Budgets are minutes of wall time; raising one and starting again
trains longer.

    python -m worker.ml.toyworld.train --work build/toyworld --icons build/icons --out
    worker/base_models/toyworld
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from transformers import CLIPTokenizer

from worker.ml.toyworld.autoencoder import scene_pixels, train_autoencoder
from worker.ml.toyworld.budget import Budget
from worker.ml.toyworld.captions import caption
from worker.ml.toyworld.card import write_card, write_sheet
from worker.ml.toyworld.class_drawings import VariedBank, class_drawings
from worker.ml.toyworld.denoiser import SceneRing
from worker.ml.toyworld.denoiser_training import Learner, train_denoiser
from worker.ml.toyworld.export import export_base
from worker.ml.toyworld.further_icons import FURTHER_NOUNS, further_sprites
from worker.ml.toyworld.gradient_exchange import GradientExchange, shared_slots
from worker.ml.toyworld.judge_training import RoundTrips, train_image_text, train_subject
from worker.ml.toyworld.measure import Bench, measure
from worker.ml.toyworld.photos import photo_sets, write_photos
from worker.ml.toyworld.scenes import SpriteBank, sample_scene
from worker.ml.toyworld.sprites import DESIGNERS, load_sprites
from worker.ml.toyworld.tokenizer import save_tokenizer, train_tokenizer
from worker.ml.toyworld.world import NOUNS

CAPTIONS_FOR_TOKENIZER = 40_000
STAGES = (
    "tokenizer", "autoencoder", "judges", "denoiser", "polish", "photos", "export", "measure", "card",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Where things are, and how long each part may take."""

    work: Path
    icons: Path
    out: Path
    photos: Path
    minutes_autoencoder: float
    minutes_denoiser: float
    minutes_subject_judge: float
    minutes_image_text_judge: float
    minutes_polish: float
    processes: int
    device: str
    prompts: int
    captions: int

    @cached_property
    def bank(self) -> SpriteBank:
        return SpriteBank(load_sprites(self.icons, self.work / "sprites.npz", NOUNS, DESIGNERS))

    @property
    def tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.work / "tokenizer", local_files_only=True)

    @property
    def autoencoder(self) -> AutoencoderKL:
        vae = AutoencoderKL.from_pretrained(self.work / "autoencoder", local_files_only=True)
        return vae.requires_grad_(False).eval()

    @property
    def bench(self) -> Bench:
        return Bench.of(self.out, self.bank, self.photos, self.prompts)


def make_tokenizer(plan: Plan) -> None:
    """Trained once: every later stage depends on its ids."""
    if not (plan.work / "tokenizer" / "vocab.json").exists():
        rng = np.random.default_rng(10)
        texts = (caption(sample_scene(plan.bank, rng), rng) for _ in range(plan.captions))
        save_tokenizer(train_tokenizer(texts), plan.work / "tokenizer")


def make_autoencoder(plan: Plan) -> None:
    """The autoencoder and, once, the scale that gives its latents unit deviation."""
    torch.manual_seed(1)
    budget = Budget.resumed(plan.minutes_autoencoder * 60, plan.work / "autoencoder.jsonl")
    if budget.share < 1 and not (plan.work / "scale.txt").exists():
        train_autoencoder(plan.bank, plan.work / "autoencoder", budget, device=plan.device)
    if not (plan.work / "scale.txt").exists():
        with torch.no_grad():
            pixels = scene_pixels(plan.bank, np.random.default_rng(5), 64, 64)
            deviation = float(plan.autoencoder.encode(pixels).latent_dist.mean.std())
        (plan.work / "scale.txt").write_text(str(1 / deviation))


def make_judges(plan: Plan) -> None:
    """Both judges, one after the other: the second starts from what the first has learnt of shapes."""
    folder = plan.work / "judges"
    folder.mkdir(parents=True, exist_ok=True)
    trips = RoundTrips(plan.autoencoder)
    further = load_sprites(plan.icons, plan.work / "further_sprites.npz", FURTHER_NOUNS, DESIGNERS)
    sprites = {**plan.bank.sprites, **further_sprites(further, plan.bank.sprites)}
    budget = Budget.resumed(plan.minutes_subject_judge * 60, folder / "subject.jsonl")
    if budget.share < 1:
        train_subject(SpriteBank(sprites), trips, folder, budget)
    seconds = plan.minutes_image_text_judge * 60
    if Budget.resumed(seconds, folder / "image_text.jsonl").share < 1:
        bank = VariedBank(sprites, more=class_drawings(plan.icons))
        budget = Budget.resumed(seconds, folder / "image_text.jsonl")
        train_image_text(bank, plan.tokenizer, trips, folder, budget)


def _denoise(rank: int, plan: Plan, port: int, slots: Tensor | None) -> None:
    torch.set_num_threads(1)
    exchange = None
    if slots is not None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=plan.processes)
        exchange = GradientExchange(slots, rank)
    scale = float((plan.work / "scale.txt").read_text())
    ring = SceneRing(plan.autoencoder, plan.bank, plan.tokenizer, scale, device=plan.device)
    budget = Budget.resumed(plan.minutes_denoiser * 60, plan.work / "denoiser.jsonl")
    train_denoiser(ring, plan.work / "denoiser", budget, rank=rank, exchange=exchange)
    if exchange is not None:
        dist.destroy_process_group()


def make_denoiser(plan: Plan) -> None:
    """Denoiser and text encoder in ``processes`` processes, which average their gradients."""
    if Budget.resumed(plan.minutes_denoiser * 60, plan.work / "denoiser.jsonl").share >= 1:
        return
    if plan.processes == 1:
        _denoise(0, plan, 0, None)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    count = sum(p.numel() for p in Learner(plan.tokenizer).parameters())
    slots = shared_slots(count, plan.processes)
    spawn(_denoise, (plan, port, slots), nprocs=plan.processes)  # type: ignore[no-untyped-call]


def polish_decoder(plan: Plan) -> None:
    """The decoder alone goes on learning in a copy; latents, and so the denoiser, are untouched."""
    budget = Budget.resumed(plan.minutes_polish * 60, plan.work / "polish.jsonl")
    if budget.share < 1:
        folder = plan.work / "autoencoder-polished"
        if not folder.exists():
            plan.autoencoder.save_pretrained(folder)
        train_autoencoder(plan.bank, folder, budget, decoder_only=True, device=plan.device)


def make_photos(plan: Plan) -> None:
    """Stage: sample photos of the held-out subjects."""
    write_photos(plan.bank, plan.photos, photo_sets())


def make_export(plan: Plan) -> None:
    """Stage: the diffusers folder in half precision, with the judges."""
    export_base(plan.work, plan.out)


def make_measures(plan: Plan) -> None:
    """Stage: measures.json, by the judges that were exported. Where a part was not trained in this work folder, what
    an earlier measure of the same weights says of its training stands.
    """
    path = plan.out / "measures.json"
    measures = measure(plan.bench, plan.work)
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if earlier.get("base_hash") == measures["base_hash"]:
        measures["training"] = earlier["training"] | measures["training"]
    path.write_text(json.dumps(measures, indent=1) + "\n")


def make_card(plan: Plan) -> None:
    """Stage: model card and picture sheet."""
    write_sheet(plan.bench, plan.out / "sheet.webp")
    write_card(json.loads((plan.out / "measures.json").read_text()), plan.out)


RUN: dict[str, Callable[[Plan], None]] = dict(
    zip(
        STAGES,
        (
            make_tokenizer,
            make_autoencoder,
            make_judges,
            make_denoiser,
            polish_decoder,
            make_photos,
            make_export,
            make_measures,
            make_card,
        ),
        strict=True,
    )
)


def parsed(arguments: list[str] | None = None) -> tuple[Plan, list[str]]:
    """The plan, and the stages to run."""
    parser = argparse.ArgumentParser(prog="python -m worker.ml.toyworld.train", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="state of the stages; kept between runs")
    parser.add_argument("--icons", type=Path, required=True, help="folder with node_modules/@iconify-json")
    parser.add_argument("--out", type=Path, required=True, help="where the base model is written")
    parser.add_argument("--photos", type=Path, default=Path("backend/sample_photos"))
    parser.add_argument("--minutes-autoencoder", type=float, default=28)
    parser.add_argument("--minutes-denoiser", type=float, default=136)
    parser.add_argument("--minutes-subject-judge", type=float, default=36)
    parser.add_argument("--minutes-image-text-judge", type=float, default=140)
    parser.add_argument("--minutes-polish", type=float, default=10)
    parser.add_argument("--processes", type=int, default=2, help="of the denoiser's training on a CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prompts", type=int, default=96, help="for measuring prompt accuracy")
    parser.add_argument("--captions", type=int, default=CAPTIONS_FOR_TOKENIZER, help="for the tokenizer")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    values = vars(parser.parse_args(arguments))
    stages = values.pop("stages")
    if values["device"] != "cpu":
        values["processes"] = 1
    return Plan(**values), stages


def main(arguments: list[str] | None = None) -> None:
    """Run the stages in their order."""
    plan, stages = parsed(arguments)
    plan.work.mkdir(parents=True, exist_ok=True)
    for name in STAGES:
        if name in stages:
            print(f"toyworld: {name}", flush=True)  # noqa: T201
            RUN[name](plan)


if __name__ == "__main__":
    main()
