"""Gradient fusion (Mix-of-Show, Gu et al., NeurIPS 2023, arXiv 2305.18292, section 3.2; methods.md 13.1): the change of
each layer that makes of every concept's own inputs what the concept's own change makes of them, as nearly as one change
can: ``min_D sum_i ||(dW_i - D) X_i||_F^2``, in closed form (`worker.ml.soft_change`).

For keys and values of text X_i are the text states of the concept's own words (`worker.ml.constraint_rows`), and
captions may be held as in the closed-form merge. For all other linear layers X_i is what they read while a picture of
each word is drawn with the concept alone (`worker.ml.activations`), by both halves of the guidance. A layer that a
concept does not change is asked to stay as it is on that concept's inputs.

Departures: captions are held a little unless asked otherwise, since the paper's own form moves ordinary text as far as
its words; the least-squares problem is solved, where the authors run LBFGS for 50 to 500 iterations; the text encoder
is never changed here, so nothing of it is fused; text states from V* to the end of the text, not at two positions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.schemas.merges.gradient_fusion import CARD, GradientFusionParams
from backend.schemas.merges.requests import MergeReport, SiteMerge
from worker.ml.activations import recorded_inputs
from worker.ml.caption_factor import CaptionFactor, HeldTexts, caption_factor, corpus_notes
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import MatrixChange, Prompt, TextEdit
from worker.ml.constraint_rows import Asked, WordRows, captions_of, read_sites, without_repeats, word_rows
from worker.ml.families.base import DiffusionModel
from worker.ml.merges.base import Merged, MergeInput
from worker.ml.merges.inputs import (
    as_changes,
    check_inputs,
    described,
    merged_manifest,
    merged_tokens,
    renaming_notes,
)
from worker.ml.merges.verification import caption_norms
from worker.ml.readers import reader_of
from worker.ml.run import Run
from worker.ml.sampling.latents import Picture, sample_latents
from worker.ml.soft_change import Readings, nearest_change
from worker.ml.summed_changes import sum_key
from worker.ml.taught_words import token_tensors

STATIONARITY = 1e-6
HALFWAY = 0.1
"""Share of what was learned from which on its loss is told."""
Known = Sequence[tuple[MergeInput, Mapping[str, MatrixChange]]]
"""Inputs with their changes at scale 1, {path: change}."""


@dataclass(frozen=True, eq=False)
class Fused:
    """One layer: what is stored of it by name in the file, and its numbers."""

    tensors: dict[str, Tensor]
    numbers: SiteMerge


class GradientFusion:
    """The merge; it holds no state."""

    name = CARD.name

    @torch.no_grad()
    def merge(
        self, model: DiffusionModel, inputs: Sequence[MergeInput], params: GradientFusionParams, run: Run
    ) -> Merged:
        began = time.monotonic()
        check_inputs(model, CARD, inputs)
        known = [(each, as_changes(model, each)) for each in inputs]
        layers = _picture_layers(model, known)
        words, negative = _words(model, known)
        every = [word for each in words for word in each]
        texts = HeldTexts(params.captions)
        factor = caption_factor(model, texts, run)
        fused = _text_sites(model, every, factor, params)
        run.step("merge", 1, 2)
        readings = _watched(model, known, layers, params, run) if layers else {}
        fused += [_picture_site(name, each, params) for name, each in readings.items()]
        run.step("merge", 2, 2)
        named = merged_tokens(inputs)
        rows = {taught.token: word.rows for taught, word in zip(named, every, strict=True)}
        text_side = all(each.weights.manifest.side == "text" for each in inputs)
        given = {**params.model_dump(mode="json"), **({"negative": negative} if text_side else {})}
        manifest = merged_manifest(model, self.name, "text" if text_side else "weights", inputs, given)
        stored = {name: tensor for each in fused for name, tensor in each.tensors.items()}
        sites = [each.numbers for each in fused]

        def worst(field: str) -> float | None:
            return max((getattr(site, field) or 0.0 for site in sites), default=None)

        missed, bent = worst("residual_of_change") or 0.0, worst("stationarity") or 0.0
        failures = [f"The change is not the nearest: the optimality condition is missed by {bent:.1e}."]
        report = MergeReport(
            merge=self.name,
            inputs=described(inputs),
            verified=bent <= STATIONARITY,
            failures=failures if bent > STATIONARITY else [],
            notes=[
                *renaming_notes(inputs),
                *corpus_notes(model),
                *_told(missed, sites, len(named) if layers else 0),
            ],
            captions=factor.captions,
            held_rows=factor.rows if params.hold else 0,
            residual_of_change=missed,
            drift=worst("drift"),
            drift_held_out=worst("drift_held_out"),
            stationarity=bent,
            seconds=time.monotonic() - began,
            sites=sites,
        )
        return Merged(ConceptWeights(manifest, {**token_tensors(rows), **stored}), report)


def _told(missed: float, sites: Sequence[SiteMerge], drawn: int) -> list[str]:
    told = []
    if missed > HALFWAY:
        site = max(sites, key=lambda each: each.residual_of_change or 0.0).site
        told.append(
            f"The concepts are met halfway: at {site}, the worst layer, {missed:.0%} of what they learned there is "
            "missing or another's."
        )
    if drawn:
        told.append(
            f"Layers that read the picture were fitted while {drawn} picture{'s were' if drawn > 1 else ' was'} drawn; "
            "what they do to other pictures was not measured."
        )
    return told


def _text_paths(model: DiffusionModel) -> set[str]:
    return {f"{site.name}.weight" for site in read_sites(model)}


def _picture_layers(model: DiffusionModel, known: Known) -> dict[str, torch.nn.Module]:
    """{name: Linear} of everything that is changed beside keys and values of text."""
    modules = {f"{site.name}.weight": site for site in model.sites()}
    paths = {path for _, changes in known for path in changes} - _text_paths(model)
    return {modules[path].name: modules[path].module for path in sorted(paths)}


def _words(model: DiffusionModel, known: Known) -> tuple[list[list[WordRows]], bool]:
    """The words of each input as `word_rows` has them, and whether any change acts on negative prompts."""
    asked, negative, ready = [], False, _text_paths(model)
    for each, changes in known:
        edit = reader_of(each.weights).edit(model, each.weights)
        sites = {path.removesuffix(".weight"): change for path, change in changes.items() if path in ready}
        negative = negative or (bool(sites) and edit.negative)
        asked.append(Asked(TextEdit(edit.tokens, sites), each.scale, each.weights.manifest.tokens))
    return word_rows(model, asked, prefix=False), negative


def _text_sites(
    model: DiffusionModel, words: Sequence[WordRows], factor: CaptionFactor, params: GradientFusionParams
) -> list[Fused]:
    """Every key and value of text that any word wants to be read otherwise, as factors."""
    states = without_repeats(torch.cat([word.states for word in words]))
    share = (params.hold * states.square().sum() / factor.held.states.square().sum()).sqrt()
    nearest = nearest_change(states, params.ridge, share * factor.held.states if params.hold else None)
    inner, orthonormal = nearest.stored()
    sites = read_sites(model)
    norms = caption_norms(model, factor, sites)
    found = []
    for site in sites:
        wanted = torch.cat([word.changes[site.name] for word in words]).T
        if not wanted.any():
            continue
        up, down = (wanted @ inner).float().contiguous(), orthonormal.float().contiguous()
        change, (held, out) = up.double() @ down.double(), norms[site.name]
        numbers = SiteMerge(
            site=site.name,
            change=float(change.norm()),
            rank=len(down),
            residual_of_change=Readings(states, wanted).off(change),
            drift=_share((change @ factor.held.states.T).norm(), held),
            drift_held_out=_share((change @ factor.held_out.T).norm(), out),
            stationarity=nearest.stationarity(wanted),
        )
        found.append(Fused({f"site.{site.name}.up": up, f"site.{site.name}.down": down}, numbers))
    return found


def _watched(
    model: DiffusionModel,
    known: Known,
    layers: Mapping[str, torch.nn.Module],
    params: GradientFusionParams,
    run: Run,
) -> dict[str, Readings]:
    """{layer: what it reads while each concept's words are drawn, and what that concept makes of it}."""
    found: dict[str, Readings] = {}
    for each, changes in known:
        with recorded_inputs(layers) as triangles:
            for _ in sample_latents(model, _pictures(model, each, params), run, "images"):
                continue
        for name, layer in layers.items():
            rows, change = triangles[name].found(), changes.get(f"{name}.weight")
            wanted = rows.new_zeros(len(layer.get_parameter("weight")), len(rows))
            if change is not None:
                wanted = each.scale * change.dense().double().cpu() @ rows.T
            found[name] = found[name].joined(rows, wanted) if name in found else Readings(rows, wanted)
    return found


def _pictures(model: DiffusionModel, each: MergeInput, params: GradientFusionParams) -> list[Picture]:
    """One of each word of the weights, with them alone, as the base model draws by default."""
    reader, description = reader_of(each.weights), model.description
    edits = ((reader.edit(model, each.weights), each.scale),)
    put = reader.installation(model, each.weights)
    return [
        Picture(
            prompt=Prompt(captions_of(taught)[1], edits),
            negative=Prompt("", edits, negative=True),
            seed=params.seed + place,
            num_inference_steps=params.steps,
            guidance_scale=description.defaults.guidance_scale,
            scheduler=description.defaults.scheduler,
            width=description.resolution,
            height=description.resolution,
            installation=() if put is None else ((put, each.scale),),
        )
        for place, taught in enumerate(each.weights.manifest.tokens)
    ]


def _picture_site(name: str, readings: Readings, params: GradientFusionParams) -> Fused:
    nearest = nearest_change(readings.rows, params.ridge)
    change = (readings.wanted @ nearest.spread).float()
    numbers = SiteMerge(
        site=name,
        change=float(change.norm()),
        residual_of_change=readings.off(change.double()),
        stationarity=nearest.stationarity(readings.wanted),
    )
    return Fused({sum_key(f"{name}.weight"): change}, numbers)


def _share(part: Tensor, whole: float) -> float:
    return float(part) / whole if whole > 0.0 else 0.0
