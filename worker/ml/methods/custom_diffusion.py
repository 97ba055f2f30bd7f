"""Custom Diffusion (Kumari et al., CVPR 2023, arXiv 2212.04488; methods.md 4): keys, values and one word.

Trained are the change D of every cross-attention key and value matrix, ``W' = W + D`` with D = 0 at the
start, and the row V* of each placeholder, starting from a rare token's. The objective is the masked noise (or
v) regression on the photos plus lambda times the same on generated images of the class, half of the rows
each; key and value of the start token enter detached.

Departures: AdamW decays D, that is towards the base model, and not W' towards zero; V* is not decayed (the
reference decays the whole embedding table); views of the photos come from a bank (``training/dataset.py``).
Several concepts train jointly (methods.md 5): one set of matrices, a V* each, rows dealt to the concepts in
turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backend.schemas.methods.custom_diffusion import CARD, CustomDiffusionParams, side
from backend.schemas.weights import TaughtToken, WeightsManifest
from worker.ml.concept_weights import CODE_VERSION, ConceptWeights
from worker.ml.conditioning import DenseChange, Prompt, TextEdit, TokenRows
from worker.ml.errors import InputInvalid, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.methods.base import ConceptExamples
from worker.ml.run import Run
from worker.ml.training.augmentation import SMALL, ZOOMED
from worker.ml.training.captions import class_prompts, photo_caption
from worker.ml.training.dataset import PHOTOS_TOGETHER, PRIOR_TOGETHER, Bank, build_bank, deal
from worker.ml.training.preview import draw_previews
from worker.ml.training.prior import PriorImages, ensure_prior
from worker.ml.training.trainee import Group, Rows, Trainee


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one concept is taught from."""

    concept: ConceptExamples
    bank: Bank
    prior: PriorImages | None


class CustomDiffusion:
    """The method; it holds no state."""

    name = CARD.name

    def trainee(
        self,
        model: DiffusionModel,
        concepts: Sequence[ConceptExamples],
        params: CustomDiffusionParams,
        *,
        seed: int,
        prior_dir: Path,
        previews: Sequence[str],
        run: Run,
    ) -> Trainee:
        edit = untrained_edit(model, concepts)
        check_texts(model, concepts, params, previews, edit)
        lessons = prepare(model, concepts, params, seed=seed, prior_dir=prior_dir, run=run)
        matrices = {f"site.{name}.delta": change.dense() for name, change in edit.sites.items()}
        words = {f"token.{name}.learned": rows.learned for name, rows in edit.tokens.items()}
        for tensor in (*matrices.values(), *words.values()):
            tensor.requires_grad_(True)

        def result(steps: int) -> ConceptWeights:
            starts = {f"token.{name}.start": rows.start for name, rows in edit.tokens.items()}
            tensors = {**matrices, **words, **starts}
            return ConceptWeights(
                manifest(model, concepts, params, seed, steps),
                {name: tensor.detach().cpu().float().clone() for name, tensor in tensors.items()},
            )

        return Trainee(
            unit="train",
            seed=seed,
            steps=params.steps,
            groups=(
                Group(matrices, params.learning_rate, params.weight_decay),
                Group(words, params.token_learning_rate, 0.0),
            ),
            rows=lambda step: deal_rows(lessons, params, seed, step, edit),
            result=result,
            preview=lambda run: draw_previews(model, previews, edit, seed, run),
            preview_every=params.preview_every,
            fingerprint=fingerprint(self.name, model, concepts, params, seed),
            prior_weight=params.prior_weight,
            max_grad_norm=params.max_grad_norm,
        )

    def edit(self, model: DiffusionModel, weights: ConceptWeights) -> TextEdit:
        deltas = self.deltas(model, weights)
        names = [taught.token for taught in weights.manifest.tokens]
        tokens = {
            name: TokenRows(weights.tensors[f"token.{name}.start"], weights.tensors[f"token.{name}.learned"])
            for name in names
        }
        width = model.initial_rows(1).shape[1]
        if any(rows.start.shape[1] != width or rows.learned.shape[1] != width for rows in tokens.values()):
            raise WeightsInvalid(
                f"The placeholder's vectors do not have the {width} numbers of this base model."
            )
        moved = {name: DenseChange(delta.to(model.device, model.dtype)) for name, delta in deltas.items()}
        return TextEdit(tokens, moved, negative=True)

    def deltas(self, model: DiffusionModel, weights: ConceptWeights) -> Mapping[str, Tensor]:
        made_for = weights.manifest
        if made_for.base_hash != model.description.hash or made_for.prediction_type != model.prediction_type:
            raise WeightsInvalid(
                f"These weights were trained on {made_for.base}, not on {model.description.id}: "
                "they are differences from that base model and mean nothing elsewhere."
            )
        expected = {
            site.name: site.weight.shape
            for layer in model.cross_attention()
            for site in (layer.key, layer.value)
        }
        found = weights.site_parts()
        if found.keys() != expected.keys() or any(parts.keys() != {"delta"} for parts in found.values()):
            raise WeightsInvalid(
                "The weights do not name the key and value matrices of this base model, each once."
            )
        for name, shape in expected.items():
            if found[name]["delta"].shape != shape:
                raise WeightsInvalid(
                    f"The change of {name} has shape {list(found[name]['delta'].shape)}, not {list(shape)}."
                )
        return {name: parts["delta"].float() for name, parts in found.items()}


def untrained_edit(model: DiffusionModel, concepts: Sequence[ConceptExamples]) -> TextEdit:
    """D = 0 for every key and value matrix, V* = a rare token's row, another one for each concept; fp32 on
    the device.
    """
    if len({concept.token for concept in concepts}) < len(concepts):
        raise InputInvalid("Two of the concepts have the same token.")
    starts = list(model.initial_rows(len(concepts)).float()[:, None])
    sites = [site for layer in model.cross_attention() for site in (layer.key, layer.value)]
    return TextEdit(
        {
            concept.token: TokenRows(row.clone(), row.clone())
            for concept, row in zip(concepts, starts, strict=True)
        },
        {site.name: DenseChange(torch.zeros_like(site.weight, dtype=torch.float32)) for site in sites},
        negative=True,
    )


def check_texts(
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    params: CustomDiffusionParams,
    previews: Sequence[str],
    edit: TextEdit,
) -> None:
    """Every text that will be encoded fits: found out before the first step. Raises `PromptTooLong`,
    `InputInvalid`.
    """
    virtual = {name: range(model.vocabulary_size, model.vocabulary_size + 1) for name in edit.tokens}
    prefixes = ("", *ZOOMED, *SMALL) if params.augment else ("",)
    captions = [photo_caption(c.token, c.class_noun, c.kind, prefix) for c in concepts for prefix in prefixes]
    for text in (*captions, *previews):
        model.token_ids(text, virtual)


def prepare(
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    params: CustomDiffusionParams,
    *,
    seed: int,
    prior_dir: Path,
    run: Run,
) -> list[Lesson]:
    """Encodes photos and makes or finds prior images. Raises `InputInvalid`."""
    lessons = []
    for concept in concepts:
        if not concept.photos:
            raise InputInvalid(f"The concept {concept.token} has no photos.")
        prompts = class_prompts(concept.class_noun, concept.kind, model.description.example_prompts)
        wanted = prompts and params.prior_images > 0 and params.prior_weight > 0
        prior = (
            ensure_prior(
                model,
                prompts,
                count=params.prior_images,
                steps=params.prior_steps,
                cache_dir=prior_dir,
                run=run,
            )
            if wanted
            else None
        )
        bank = build_bank(
            model,
            concept.photos,
            seed=seed,
            stream=f"photos/{concept.token}",
            augment=params.augment,
            flip=params.flip,
            run=run,
        )
        lessons.append(Lesson(concept, bank, prior))
    return lessons


def deal_rows(
    lessons: Sequence[Lesson], params: CustomDiffusionParams, seed: int, step: int, edit: TextEdit
) -> Rows:
    """``batch_size`` photos, dealt to the concepts in turn, and as many prior images of the same concepts."""
    edits = ((edit, 1.0),)
    latents, masks, captions, prior = [], [], [], []
    first, size = step * params.batch_size, params.batch_size
    for number, lesson in enumerate(lessons):
        concept, bank = lesson.concept, lesson.bank
        # of places first ... first + size - 1, those that are this concept's: number, number + len(lessons), ...
        turn = -(-(first - number) // len(lessons))
        turns = -(-(first + size - number) // len(lessons)) - turn
        places = {"first": turn, "count": turns}
        dealt = deal(bank.prefixes, seed, f"deck/{concept.token}", **places, together=PHOTOS_TOGETHER)
        latents.append(bank.latents[dealt])
        masks.append(bank.masks[dealt])
        captions += [
            photo_caption(concept.token, concept.class_noun, concept.kind, bank.prefixes[entry])
            for entry in dealt
        ]
        prior += [False] * turns
        if lesson.prior is not None:
            kept = lesson.prior
            drawn = deal(kept.captions, seed, f"prior/{concept.token}", **places, together=PRIOR_TOGETHER)
            latents.append(kept.latents[drawn])
            masks.append(torch.ones_like(masks[-1]))
            captions += [kept.captions[entry] for entry in drawn]
            prior += [True] * turns
    distinct = list(dict.fromkeys(captions))
    return Rows(
        latents=torch.cat(latents),
        masks=torch.cat(masks),
        prompts=[Prompt(caption, edits) for caption in distinct],
        prompt_of_row=[distinct.index(caption) for caption in captions],
        prior=prior,
    )


def manifest(
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    params: CustomDiffusionParams,
    seed: int,
    steps: int,
) -> WeightsManifest:
    """The header of weights that were learned this way, after ``steps`` steps."""
    description = model.description
    return WeightsManifest(
        method=CARD.name,
        side=side(params),
        base=description.id,
        base_family=description.family,
        base_hash=description.hash,
        prediction_type=model.prediction_type,
        tokens=[TaughtToken(token=c.token, class_noun=c.class_noun, kind=c.kind) for c in concepts],
        params=params.model_dump(mode="json"),
        seed=seed,
        steps=steps,
        code_version=CODE_VERSION,
    )


def fingerprint(
    method: str,
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    params: CustomDiffusionParams,
    seed: int,
) -> str:
    """sha256 over everything a training's result depends on: a checkpoint of anything else is not its own."""
    everything = {
        "method": method,
        "base": model.description.hash,
        "params": params.model_dump(mode="json"),
        "seed": seed,
        "concepts": [
            [
                c.token,
                c.class_noun,
                c.kind,
                [hashlib.sha256(photo.read_bytes()).hexdigest() for photo in c.photos],
            ]
            for c in concepts
        ],
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
