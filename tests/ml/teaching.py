"""Teaching a concept in a test: tiny parameters, any method, and counting what a model holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.schemas.methods import CARDS
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import DenseChange, Prompt, TextEdit, TokenRows, text_kv
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import installed
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import InProcessRun, Run
from worker.ml.streams import rng
from worker.ml.training.loop import train
from worker.ml.training.trainee import Trainee

TINY: dict[str, Any] = {"steps": 6, "batch_size": 2, "prior_images": 4, "prior_steps": 2, "preview_every": 3}


def stark(photos: Sequence[Path]) -> ConceptExamples:
    return ConceptExamples("stark", "dog", "subject", list(photos))


def prepare(
    model: DiffusionModel,
    concepts: Sequence[ConceptExamples],
    prior_dir: Path,
    *,
    method: str = "custom-diffusion",
    seed: int = 7,
    run: Run | None = None,
    previews: Sequence[str] = (),
    **overrides: Any,
) -> Trainee:
    params_type = CARDS[method].params_type
    tiny = {name: value for name, value in TINY.items() if name in params_type.model_fields}
    params = params_type(**{**tiny, **overrides})
    return METHODS[method].trainee(
        model, concepts, params, seed=seed, prior_dir=prior_dir, previews=previews, run=run or InProcessRun()
    )


def teach(
    model: DiffusionModel, concepts: Sequence[ConceptExamples], prior_dir: Path, **options: Any
) -> ConceptWeights:
    run = options.setdefault("run", InProcessRun())
    return train(model, [prepare(model, concepts, prior_dir, **options)], run)[0]


def assert_untrained_is_the_base(model: DiffusionModel, method: str, trainee: Trainee) -> None:
    """T1: to the bit, while it is trained and installed."""
    noisy, t = torch.randn(1, 4, 8, 8), torch.tensor([300])

    def predicted() -> Tensor:
        with torch.no_grad():
            return model.predict(noisy, t, text_kv(model, [Prompt("a photo of a dog")]))

    base = predicted()
    with trainee.installed():
        assert torch.equal(predicted(), base)
    edit = METHODS[method].installation(model, trainee.result(0))
    assert edit is not None
    with installed(model, ((edit, 1.0),)):
        assert torch.equal(predicted(), base)


def everything(model: DiffusionModel) -> dict[str, Tensor]:
    """Copies of every tensor the model holds, text encoder and autoencoder included."""
    parts = {name: part for name, part in vars(model).items() if isinstance(part, torch.nn.Module)}
    assert len(parts) == 3
    return {
        f"{name}.{key}": t.clone() for name, part in parts.items() for key, t in part.state_dict().items()
    }


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def random_edit(model: DiffusionModel, token: str = "stark", seed: int = 0, size: float = 0.3) -> TextEdit:
    """An edit of every site and one token, large enough to be seen."""
    start = model.initial_rows(1).float()
    draw = rng(seed, "edit", 0)
    sites = [site for layer in model.cross_attention() for site in (layer.key, layer.value)]
    return TextEdit(
        {token: TokenRows(start, start + size * torch.randn(start.shape, generator=draw))},
        {site.name: DenseChange(size * torch.randn(site.weight.shape, generator=draw)) for site in sites},
    )
