"""The yardstick: every weight of the denoiser and V* trained on the same rows ("fine-tune all" of Kumari et al.).

Not a product method: the tuned weights live as long as the ``with`` block and are never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from backend.schemas.methods.custom_diffusion import CustomDiffusionParams
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TextEdit
from worker.ml.families.base import DiffusionModel
from worker.ml.methods.base import ConceptExamples
from worker.ml.methods.custom_diffusion import deal_rows, manifest, prepare, untrained_edit
from worker.ml.run import Run
from worker.ml.training.loop import train
from worker.ml.training.trainee import Group, Trainee


@contextmanager
def restored(module: torch.nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """The module's parameters by name, trainable while open; on exit frozen, with the bits they had before."""
    parameters = dict(module.named_parameters())
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        yield parameters
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
                parameter.requires_grad_(False)
                parameter.grad = None


@contextmanager
def fine_tuned(
    model: DiffusionModel,
    concept: ConceptExamples,
    params: CustomDiffusionParams,
    *,
    seed: int,
    prior_dir: Path,
    run: Run,
) -> Iterator[TextEdit]:
    """Train the whole denoiser on the rows Custom Diffusion would see; while open, ``model`` is tuned."""
    words = untrained_edit(model, [concept])
    edit = TextEdit(words.tokens, {}, negative=True)
    lessons = prepare(model, [concept], params, seed=seed, prior_dir=prior_dir, run=run)
    tokens = {f"token.{name}.learned": rows.learned for name, rows in edit.tokens.items()}
    starts = {f"token.{name}.start": rows.start for name, rows in edit.tokens.items()}
    for tensor in tokens.values():
        tensor.requires_grad_(True)

    def result(steps: int) -> ConceptWeights:
        rows = {name: tensor.detach().clone() for name, tensor in {**tokens, **starts}.items()}
        return ConceptWeights(manifest(model, [concept], params, seed, steps), rows)

    with restored(model.denoiser) as parameters:
        trainee = Trainee(
            unit="train",
            seed=seed,
            steps=params.steps,
            groups=(
                Group(parameters, params.learning_rate, 0.0),
                Group(tokens, params.token_learning_rate, 0.0),
            ),
            rows=lambda step: deal_rows(lessons, params, seed, step, edit),
            result=result,
            preview=lambda _run: [],
            preview_every=0,
            fingerprint="fine-tune-all",
            prior_weight=params.prior_weight,
            max_grad_norm=params.max_grad_norm,
        )
        train(model, [trainee], run)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        yield edit
