"""What every method must do, on every family it serves (design 7). A new method is covered by its row in the
table.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backend.schemas.methods import CARDS
from tests.ml.teaching import everything, prepare, same, stark, teach
from tests.ml.tiny_base import write_tiny_base
from worker.ml.analysis import weight_change
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.families import FAMILIES, load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS
from worker.ml.run import Cancelled, InProcessRun, Released
from worker.ml.training.loop import Progress, advance

PAIRS = [(method, family) for method in METHODS for family, row in FAMILIES.items() if method in row.methods]
PREDICTIONS = {"toyworld": "v_prediction", "sd15": "epsilon"}


def test_the_table_is_the_cards() -> None:
    assert METHODS.keys() == CARDS.keys()
    assert all(method.name == name for name, method in METHODS.items())


def test_every_method_is_served_by_a_family() -> None:
    assert {method for method, _ in PAIRS} == METHODS.keys()


class Case:
    """A method on a loaded base of a family, with weights already taught."""

    def __init__(self, method: str, family: str, photos: list[Path], folder: Path) -> None:
        write_tiny_base(folder / family, PREDICTIONS.get(family, "epsilon"))
        (folder / family / "moongate.json").write_text(json.dumps({"family": family}))
        self.name, self.photos, self.prior = method, photos, folder / "prior"
        self.model: DiffusionModel = load_base(folder / family)
        self.untouched = everything(self.model)
        self.weights = self.teach()

    def teach(self, **options: object) -> ConceptWeights:
        return teach(self.model, [stark(self.photos)], self.prior, method=self.name, **options)


@pytest.fixture(scope="module", params=PAIRS, ids=[f"{method}-on-{family}" for method, family in PAIRS])
def case(
    request: pytest.FixtureRequest, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Case:
    return Case(*request.param, photos, tmp_path_factory.mktemp("case"))


def test_one_batch_is_overfitted(case: Case) -> None:
    """T10: the same rows, noise and times again and again; the loss falls and every tensor gets a gradient."""
    trainee = prepare(
        case.model,
        [stark(case.photos)],
        case.prior,
        method=case.name,
        learning_rate=0.02,
        token_learning_rate=0.02,
        weight_decay=0.0,
    )
    progress = Progress(trainee)
    losses = []
    for _ in range(15):
        losses.append(advance(case.model, [progress], InProcessRun())[0].total.item())
        if len(losses) == 1:
            gradients = {name: tensor.grad for name, tensor in progress.tensors.items()}
            assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())
        progress.done = 0
    assert losses[-1] < 0.9 * losses[0]


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
    """Adding the deltas to the denoiser's own weights predicts what the edit predicts."""
    method, model = METHODS[case.name], case.model
    edit, deltas = method.edit(model, case.weights), method.deltas(model, case.weights)
    prompts = [Prompt("a photo of a <stark> dog", ((edit, 1.0),)), Prompt("a cat", ((edit, 1.0),))]
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor([100, 700])
    row = edit.tokens["stark"].learned
    first = model.vocabulary_size
    ids = [model.token_ids(prompt.text, {"stark": range(first, first + 1)}) for prompt in prompts]
    states = model.encode_prompts(torch.tensor(ids), row).states
    named = dict(model.denoiser.named_modules())
    with torch.no_grad():
        edited = model.predict(noisy, t, text_kv(model, prompts))
        kept = {name: named[name].weight.clone() for name in deltas}  # type: ignore[operator]
        for name, delta in deltas.items():
            named[name].weight.add_(delta)  # type: ignore[operator]
        added = model.denoiser(noisy, t, encoder_hidden_states=states).sample
        for name, weight in kept.items():
            named[name].weight.copy_(weight)  # type: ignore[operator]
    torch.testing.assert_close(edited, added, atol=2e-5, rtol=1e-4)


def test_the_analysis_names_the_changed_sites(case: Case) -> None:
    deltas = METHODS[case.name].deltas(case.model, case.weights)
    assert {change.site for change in weight_change(case.model, case.weights).sites} == deltas.keys()
