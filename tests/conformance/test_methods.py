"""What every method must do, on every family it serves (design 7). A new method is covered by its row in the
table.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from backend.schemas.methods import CARDS
from tests.ml.teaching import everything, prepare, same, stark, teach
from tests.ml.tiny_base import write_tiny_base
from worker.ml.analysis import weight_change
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, TextEdit, text_kv
from worker.ml.errors import MethodUnsupported
from worker.ml.families import FAMILIES, load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS
from worker.ml.run import Cancelled, InProcessRun, Released
from worker.ml.training.loop import Progress, advance

VARIANTS: dict[str, list[dict[str, Any]]] = {"textual-inversion": [{"vectors": 2, "per_layer": True}]}
"""Further parameters that take another path through a method."""
SERVED = [(method, family) for method in METHODS for family, row in FAMILIES.items() if method in row.methods]
PAIRS = [(method, family, {}) for method, family in SERVED] + [
    (method, "toyworld", params) for method, variants in VARIANTS.items() for params in variants
]
PREDICTIONS = {"toyworld": "v_prediction", "sd15": "epsilon"}


def test_the_table_is_the_cards() -> None:
    assert METHODS.keys() == CARDS.keys()
    assert all(method.name == name for name, method in METHODS.items())


def test_every_method_is_served_by_a_family() -> None:
    assert {method for method, _ in SERVED} == METHODS.keys()


class Case:
    """A method on a loaded base of a family, with weights already taught."""

    def __init__(
        self, method: str, family: str, params: dict[str, Any], photos: list[Path], folder: Path
    ) -> None:
        write_tiny_base(folder / family, PREDICTIONS.get(family, "epsilon"))
        (folder / family / "moongate.json").write_text(json.dumps({"family": family}))
        self.name, self.photos, self.prior, self.params = method, photos, folder / "prior", params
        self.model: DiffusionModel = load_base(folder / family)
        self.untouched = everything(self.model)
        self.weights = self.teach()

    def teach(self, **options: object) -> ConceptWeights:
        return teach(
            self.model, [stark(self.photos)], self.prior, method=self.name, **{**self.params, **options}
        )


@pytest.fixture(
    scope="module",
    params=PAIRS,
    ids=[f"{method}-on-{family}{'-'.join(['', *params])}" for method, family, params in PAIRS],
)
def case(
    request: pytest.FixtureRequest, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Case:
    return Case(*request.param, photos, tmp_path_factory.mktemp("case"))


def test_one_batch_is_overfitted(case: Case) -> None:
    """T10: the same rows, noise and times again and again; the loss falls and every tensor gets a gradient."""
    fast = {"learning_rate": 0.02, "token_learning_rate": 0.02, "weight_decay": 0.0}
    known = CARDS[case.name].params_type.model_fields
    overrides = case.params | {name: value for name, value in fast.items() if name in known}
    trainee = prepare(case.model, [stark(case.photos)], case.prior, method=case.name, **overrides)
    progress = Progress(trainee)
    losses = []
    for _ in range(15):
        losses.append(advance(case.model, [progress], InProcessRun())[0].total.item())
        if len(losses) == 1:
            gradients = {name: tensor.grad for name, tensor in progress.tensors.items()}
            assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())
        progress.done = 0
    assert losses[-1] < 0.97 * losses[0]


def test_frozen_tensors_are_bit_identical_after_training(case: Case) -> None:
    assert same(case.untouched, everything(case.model))


def test_weights_survive_the_file(case: Case, tmp_path: Path) -> None:
    case.weights.save(tmp_path / "w.safetensors")
    loaded = ConceptWeights.load(tmp_path / "w.safetensors")
    assert loaded.manifest == case.weights.manifest
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in case.weights.tensors.items())
    before, after = (METHODS[case.name].edit(case.model, weights) for weights in (case.weights, loaded))
    text = "a photo of a <stark> dog"
    one, two = (text_kv(case.model, [Prompt(text, ((edit, 1.0),))]).kv for edit in (before, after))
    assert all(torch.equal(a, b) for a, b in zip(one.keys + one.values, two.keys + two.values, strict=True))


def test_the_same_seed_gives_the_same_file_and_another_seed_another(case: Case) -> None:
    assert case.teach().to_bytes() == case.weights.to_bytes()
    assert case.teach(seed=8).to_bytes() != case.weights.to_bytes()


def test_resumed_equals_undisturbed(case: Case, tmp_path: Path) -> None:
    first = InProcessRun(tmp_path)
    first.on_step = lambda unit, done, *_: setattr(
        first, "request", "release" if unit == "train" and done == 4 else None
    )
    with pytest.raises(Released):
        case.teach(run=first)
    assert case.teach(run=InProcessRun(tmp_path)).to_bytes() == case.weights.to_bytes()


def test_cancel_acts_within_one_step(case: Case) -> None:
    run = InProcessRun()
    run.on_step = lambda unit, done, *_: setattr(run, "request", "cancel" if unit == "train" else None)
    with pytest.raises(Cancelled):
        case.teach(run=run)
    assert len(run.history["train"]) == 1


def test_scale_zero_is_the_base_model(case: Case) -> None:
    edit = METHODS[case.name].edit(case.model, case.weights)
    base, zero = (text_kv(case.model, [Prompt("a dog", edits)]).kv for edits in ((), ((edit, 0.0),)))
    assert all(
        torch.equal(a, b) for a, b in zip(base.keys + base.values, zero.keys + zero.values, strict=True)
    )


def test_deltas_agree_with_the_models_output(case: Case) -> None:
    """Adding the deltas to the denoiser's own weights, and the word alone, predict what the edit predicts."""
    method, model = METHODS[case.name], case.model
    edit, deltas = method.edit(model, case.weights), method.deltas(model, case.weights)
    prompts = [Prompt("a photo of a <stark> dog", ((edit, 1.0),)), Prompt("a cat", ((edit, 1.0),))]
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor([100, 700])
    words = [Prompt(prompt.text, ((TextEdit(edit.tokens, {}), 1.0),)) for prompt in prompts]
    named = dict(model.denoiser.named_modules())
    with torch.no_grad():
        edited = model.predict(noisy, t, text_kv(model, prompts))
        kept = {name: named[name].weight.clone() for name in deltas}  # type: ignore[operator]
        for name, delta in deltas.items():
            named[name].weight.add_(delta)  # type: ignore[operator]
        added = model.predict(noisy, t, text_kv(model, words))
        for name, weight in kept.items():
            named[name].weight.copy_(weight)  # type: ignore[operator]
    torch.testing.assert_close(edited, added, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_base_it_cannot_serve_is_refused_before_any_work(
    method: str, model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    described = model.description.model_copy(update={"methods": [], "title": "Other"})
    other = copy.copy(model)
    other.description = described  # type: ignore[misc]
    with pytest.raises(MethodUnsupported, match="Other cannot be taught"):
        prepare(other, [stark(photos)], tmp_path, method=method)


@pytest.mark.parametrize("method", CARDS)
@pytest.mark.parametrize("name", ["steps", "learning_rate", "rank"])
def test_zero_of_what_must_be_something_is_refused(method: str, name: str) -> None:
    params_type = CARDS[method].params_type
    if name in params_type.model_fields:
        with pytest.raises(ValidationError, match=name):
            params_type(**{name: 0})


@pytest.mark.parametrize("method", CARDS)
def test_presets_are_valid_parameters(method: str) -> None:
    card = CARDS[method]
    assert set(card.presets) == {"quick", "balanced", "thorough"}
    for preset in card.presets.values():
        assert card.side(card.params_type.model_validate(preset)) in {"text", "weights"}


def test_the_analysis_names_the_changed_sites(case: Case) -> None:
    deltas = METHODS[case.name].deltas(case.model, case.weights)
    assert {change.site for change in weight_change(case.model, case.weights).sites} == deltas.keys()
