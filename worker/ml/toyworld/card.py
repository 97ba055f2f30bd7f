"""The model card and the picture sheet of the base model that ships, written from `measures.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from worker.ml.toyworld.class_drawings import ICON_SETS
from worker.ml.toyworld.measure import Bench
from worker.ml.toyworld.photos import LICENCES
from worker.ml.toyworld.scenes import THIRD
from worker.ml.toyworld.sprites import DESIGNERS
from worker.ml.toyworld.world import COLOURS, DRAWN_NOUNS, HELD_OUT, PLACES, STYLES

SHEET_PROMPTS = (
    "a photo of a dog on the beach",
    "a photo of a cat in the snow",
    "a photo of a red teapot on grass",
    "a photo of a blue guitar on a yellow background",
    "a photo of an owl at night",
    "a photo of a turtle under water",
    "a photo of a purple fox in the forest",
    "a photo of an apple in the desert",
    "a photo of a butterfly at sunset",
    "a photo of a horse in the city",
    "a photo of a penguin in a room",
    "a photo of a duck and an umbrella on grass",
    "a photo of a cat and a backpack on the beach",
    "a very small elephant in the desert",
    "close up photo of a rabbit in the snow",
    "a pencil drawing of a dog on grass",
)
SHEET_SEEDS = 6
CELL_PX = 96
LABEL_PX = 300

INTRODUCTION = """\
A small text-to-image latent diffusion model of exactly Stable Diffusion 1.x's classes, trained from nothing by
`worker/ml/toyworld` on scenes composed by code. It is the studio's default base: small enough to teach a
concept on a CPU, and compositional enough that the concept can be asked for in places it was never seen in.
It draws toy pictures of its own small world and nothing else."""
MEASURES_EXPLAINED = """\
 chooses
among all nouns, colours, places or ordered pairs. The second column is the same judge on true scenes of the
same words: it errs too. Object, colour and place are asked in held-out combinations."""
AGAIN = """\
`make base-model` makes all of this again: it fetches the icon packages, renders the drawings, and trains
tokenizer, autoencoder, judges and denoiser for the budgets given to `python -m worker.ml.toyworld.train`. A
run that is interrupted goes on where it stopped; a longer run only replaces the weights."""

GOALS = {"object": 0.95, "place": 0.98, "colour": 0.90, "both of a pair": 0.85}
"""What the full training is for; below a goal the card says what to expect."""
SHORTCOMINGS = {
    "object": (
        "the drawing is not always of the object asked for",
        "objects are mostly not what was asked for",
    ),
    "place": ("the place is sometimes another", "places are mostly wrong"),
    "colour": ("a colour sometimes goes astray", "the colour asked for is missed more often than hit"),
    "both of a pair": ("of two objects one sometimes takes over", "two objects seldom both come out"),
}
"""Below the goal, and below one half."""

Measures = dict[str, Any]


def write_sheet(
    bench: Bench, path: Path, prompts: tuple[str, ...] = SHEET_PROMPTS, seeds: int = SHEET_SEEDS
) -> None:
    """Prompts down, seeds across, each picture at one and a half times its size."""
    texts = [prompt for prompt in prompts for _ in range(seeds)]
    pixels = torch.cat([bench.drawn(texts[i : i + seeds]) for i in range(0, len(texts), seeds)])
    sheet = Image.new("RGB", (LABEL_PX + seeds * CELL_PX, len(prompts) * CELL_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for number, one in enumerate(pixels):
        row, column = divmod(number, seeds)
        array = ((one.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        picture = Image.fromarray(array).resize((CELL_PX, CELL_PX), Image.Resampling.BICUBIC)
        sheet.paste(picture, (LABEL_PX + column * CELL_PX, row * CELL_PX))
        if column == 0:
            pen.text((8, row * CELL_PX + CELL_PX // 2 - 6), prompts[row], fill="black")
    sheet.save(path, quality=85, method=6)


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _accuracy_rows(measures: Measures) -> list[list[str]]:
    found = measures["prompt_accuracy"]
    return [
        [
            asked,
            _percent(found["generated"][asked]),
            _percent(found["true scenes"][asked]),
            f">= {_percent(goal)}",
        ]
        for asked, goal in GOALS.items()
    ]


def _training_rows(measures: Measures) -> list[list[str]]:
    rows = []
    for name, log in measures["training"].items():
        first, last = log["loss"][0], log["loss"][-1]
        rows.append(
            [name, f"{log['samples']:,}", f"{log['seconds'] / 60:.0f}", f"{first[1]:.3f}", f"{last[1]:.3f}"]
        )
    return rows


def _expectations(measures: Measures) -> str:
    """What a reader has to expect of these weights, from how far they are from the goals."""
    found, true = (measures["prompt_accuracy"][of] for of in ("generated", "true scenes"))
    short = [
        words[found[asked] < 0.5] for asked, words in SHORTCOMINGS.items() if found[asked] < GOALS[asked]
    ]
    blind = [asked for asked in GOALS if true[asked] < GOALS[asked]]
    sentences = []
    if short:
        sentences.append(
            f"These weights are not trained to convergence: {'; '.join(short)}; small detail is not there."
            " A longer training is the remedy."
        )
    if blind:
        sentences.append(
            f"For {' and '.join(blind)} the judge misses its own goal on true scenes too, so that row bounds what"
            " can be said of the base."
        )
    return " ".join([*sentences, "Pictures larger than 64 px repeat themselves."])


def model_card(measures: Measures, sizes: dict[str, int]) -> str:
    """Markdown; ``sizes`` are bytes of each weight file by its path in the folder."""
    ranking, found = measures["judges"]["subject_ranking"], measures["judges"]["image_text_retrieval"]
    psnr = measures["autoencoder_psnr"]
    diversity = [f"{noun} {one['designers']} of {one['of']}" for noun, one in measures["diversity"].items()]
    licences = sorted({(LICENCES[d][1], LICENCES[d][0]) for d in DESIGNERS})
    judged = sorted({(LICENCES[d][1], LICENCES[d][0]) for d in ICON_SETS} - set(licences))
    denoiser = measures["training"].get("denoiser", {"loss": []})
    curve = ", ".join(f"{step}: {loss:.3f}" for step, loss in denoiser["loss"])
    seeds = next(iter(measures["diversity"].values()))["seeds"]
    paragraphs = [
        "# Toyworld 64 px",
        INTRODUCTION,
        f"Weights hash (sha256): `{measures['base_hash']}`",
        "![prompts down, seeds across](sheet.webp)",
        "## What it knows",
        "\n".join(
            [
                f"- {len(DRAWN_NOUNS)} objects: {', '.join(DRAWN_NOUNS)}.",
                f"- {len(PLACES)} places: {', '.join(words[0] for words in PLACES.values())}; plain backgrounds.",
                f"- {len(COLOURS)} colours: {', '.join(COLOURS)}. Styles: {', '.join(STYLES)}.",
                '- One object or two side by side. The size words ("close up", "zoomed in", "very small",',
                f'  "a far away") and the styles came late and rarely in training ({_percent(THIRD.sizes)} and'
                f" {_percent(THIRD.styles)} of the scenes of its last part): expect little of them.",
                "- Words beyond these are read as bytes and mean nothing to it.",
            ]
        ),
        "Never trained on: the drawings of "
        + ", ".join(f"{s.name} ({s.noun}, {s.key.designer})" for s in HELD_OUT)
        + "; the moongate; one combination of object, colour and place in twelve.",
        "## Measures",
        f"Drawn with the base's own defaults, {measures['prompts']} prompts (half as many pairs); the judge"
        + MEASURES_EXPLAINED,
        "\n".join(
            _table(
                ["asked", "generated", "true scenes", "target of the full training"], _accuracy_rows(measures)
            )
        ),
        "\n".join(
            [
                f"- Autoencoder on fresh scenes: {psnr['mean_db']} dB PSNR (tenth percentile "
                f"{psnr['tenth_percentile_db']} dB).",
                f"- Designers seen over {seeds} seeds of one prompt: {'; '.join(diversity)}.",
                f"- Image-text judge on {found['scenes']} fresh scenes: picture to caption "
                f"{_percent(found['picture_to_caption_top1'])} "
                f"(top 5 {_percent(found['picture_to_caption_top5'])}), "
                f"caption to picture {_percent(found['caption_to_picture_top1'])}.",
                "- Subject judge on the held-out subjects' photos: two photos of one subject against another",
                f"  designer's drawing of the class, AUC {ranking['auc_same_subject_against_same_class']:.3f}"
                f" (each subject alone: mean {ranking['auc_within_each_subject_mean']:.3f}, lowest"
                f" {ranking['auc_within_each_subject_lowest']:.3f}); against other subjects"
                f" {ranking['auc_same_subject_against_other_subjects']:.3f}.",
            ]
        ),
        "All numbers are in `measures.json`.",
        "## Training",
        "\n".join(
            _table(["part", "samples", "minutes (wall)", "first loss", "last loss"], _training_rows(measures))
        ),
        f"Denoiser, smoothed loss by step: {curve}.",
        AGAIN,
        _expectations(measures),
        "## Data and licences",
        "Scenes are composed of drawings from Iconify's packages on backgrounds drawn by this project's code"
        " (Apache-2.0):",
        "\n".join(f"- {who}: {licence}" for who, licence in licences),
        "The image-text judge, and it alone, also learnt from further drawings of the same classes:",
        "\n".join(f"- {who}: {licence}" for who, licence in judged),
        "The weights, judges, sheet and card are Apache-2.0, with attribution to the designers above.",
        "## Files",
        "\n".join(f"- `{name}`: {size / 1e6:.2f} MB" for name, size in sizes.items()),
    ]
    return "\n\n".join(paragraphs) + "\n"


def write_card(measures: Measures, folder: Path) -> None:
    """``MODEL_CARD.md`` in ``folder``."""
    files = sorted(folder.rglob("*.safetensors"))
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / "MODEL_CARD.md").write_text(model_card(measures, sizes))
