"""What every method must do, on every family it serves (design 7). A new method is covered by its row in the
table.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from backend.schemas.bases import SHIPPED, Backbone
from backend.schemas.methods import CARDS
from backend.schemas.trainings import Preset
from backend.schemas.weights import Compression
from tests.ml.teaching import everything, prepare, same, stark, teach
from tests.ml.tiny_base import write_tiny_base
from worker.ml.analysis import weight_change
from worker.ml.compression import compress
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, TextEdit, TokenRows, text_kv
from worker.ml.errors import InputInvalid, MethodUnsupported
from worker.ml.families import FAMILIES, load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.gates import gated_change
from worker.ml.installation import WeightEdit, installed
from worker.ml.methods import METHODS
from worker.ml.methods.base import NotAdditive
from worker.ml.run import Cancelled, InProcessRun, Released
from worker.ml.streams import rng
from worker.ml.training.loop import Progress, advance
from worker.ml.training.losses import masked_squared_error
from worker.ml.training.trainee import Trainee

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "custom-diffusion": [{"train": "crossattn"}, {"word": "class-noun"}],
    "textual-inversion": [{"vectors": 2, "per_layer": True}],
    "lora": [
        {"attention": "key-value"},
        {"basis": "orthogonal", "first_column": 8, "train_token": True},
        {
            "attention": "none",
            "feed_forward": True,
            "convolution": True,
            "text_encoder": True,
            "train_token": True,
            "prior_weight": 1.0,
            "alpha": 6.0,
        },
        {"use_dora": True},
        {"use_dora": True, "attention": "key-value", "alpha": 6.0},
        {"use_dora": True, "feed_forward": True, "convolution": True, "text_encoder": True},
    ],
    "loha": [{"attention": "key-value"}],
    "lokr": [{"attention": "key-value"}, {"rank": 2, "factor": 4, "alpha": 6.0}],
    "dreambooth": [{"text_encoder": True, "ema_decay": 0.9, "gradient_checkpointing": True}],
    "perfusion": [{"locking": "global"}],
    "svdiff": [{"layers": "key-value"}, {"layers": "cross", "text_encoder": True}],
}
"""Further parameters that take another path through a method."""
FAST = {"dreambooth": 0.002, "svdiff": 0.05, "perfusion": 0.05}
"""Rates at which fifteen steps overfit a batch, where 0.02 is too fast, all weights moving at once, or too slow."""
SERVED = [(method, family) for method in METHODS for family, row in FAMILIES.items() if method in row.methods]
PAIRS = [(method, family, {}) for method, family in SERVED] + [
    (method, "toyworld", params) for method, variants in VARIANTS.items() for params in variants
]
TEXTS = ("a photo of a <stark> dog", "a cat")
NOISY = (torch.randn(2, 4, 8, 8, generator=rng(0, "noisy", 0)), torch.tensor([100, 700]))
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
        self.model: DiffusionModel = load_base(folder / family, cache_dir=folder / "cache")
        self.untouched = everything(self.model)
        self.weights = self.teach()

    def teach(self, **options: object) -> ConceptWeights:
        return teach(
            self.model, [stark(self.photos)], self.prior, method=self.name, **{**self.params, **options}
        )

    def predicted(self, weights: ConceptWeights, scale: float = 1.0) -> Tensor:
        """What the denoiser predicts with the weights in use, for a prompt with the word and one without."""
        method = METHODS[self.name]
        edits = ((method.edit(self.model, weights), scale),)
        installation = method.installation(self.model, weights)
        assert (installation is None) == (weights.manifest.side == "text")
        with installed(self.model, ((installation, scale),) if installation else ()), torch.no_grad():
            prompts = [Prompt(text, edits) for text in TEXTS]
            return self.model.predict(*NOISY, text_kv(self.model, prompts))

    def loss(self, trainee: Trainee, edit: TextEdit) -> float:
        """Of the trainee's first rows, with ``edit`` in the place of what it learns."""
        rows = trainee.rows(0)
        noisy, t, target = self.model.noised(rows.latents, rng(trainee.seed, "noise", 0))
        texts = text_kv(self.model, [Prompt(prompt.text, ((edit, 1.0),)) for prompt in rows.prompts])
        with torch.no_grad():
            predicted = self.model.predict(noisy, t, texts.rows(rows.prompt_of_row))
        return masked_squared_error(predicted, target, rows.masks).mean().item()


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
    """T10: the same rows, noise and times again and again; the loss falls and every tensor gets a gradient.

    A method whose steps train nothing (all rates are zero) has its loss lowered by what it makes of their gradients:
    by a little, where it does not go far in their direction.
    """
    rate = FAST.get(case.name, 0.02)
    fast = {"learning_rate": rate, "token_learning_rate": rate, "weight_decay": 0.0, "strength": 2.0}
    known = CARDS[case.name].params_type.model_fields
    overrides = case.params | {name: value for name, value in fast.items() if name in known}
    trainee = prepare(case.model, [stark(case.photos)], case.prior, method=case.name, **overrides)
    with trainee.installed():
        progress = Progress(trainee)
        losses = []
        for _ in range(15):
            losses.append(advance(case.model, [progress], InProcessRun())[0].total.item())
            if len(losses) == 2:  # LoRA's A has a gradient once B is not zero any more
                gradients = {name: tensor.grad for name, tensor in progress.tensors.items()}
                assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())
            progress.done = 0
    if any(group.learning_rate for group in trainee.groups):
        assert losses[-1] < 0.97 * losses[0]
    else:
        assert len(set(losses)) == 1
        after = case.loss(trainee, METHODS[case.name].edit(case.model, trainee.result(15)))
        assert after < 0.995 * losses[0]


def test_frozen_tensors_are_bit_identical_after_training(case: Case) -> None:
    assert same(case.untouched, everything(case.model))


def test_weights_survive_the_file(case: Case, tmp_path: Path) -> None:
    case.weights.save(tmp_path / "w.safetensors")
    loaded = ConceptWeights.load(tmp_path / "w.safetensors")
    assert loaded.manifest == case.weights.manifest
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in case.weights.tensors.items())
    assert torch.equal(case.predicted(case.weights), case.predicted(loaded))


def test_using_them_changes_the_prediction_and_leaves_the_model_as_it_was(case: Case) -> None:
    """Bit-exact uninstall, also when something goes wrong in between."""
    predicted, base = case.predicted(case.weights), case.predicted(case.weights, 0.0)
    assert (predicted - base).abs().max() > 1e-7
    assert same(case.untouched, everything(case.model))
    installation = METHODS[case.name].installation(case.model, case.weights)
    if installation is not None:
        with pytest.raises(Cancelled):
            _cancelled_in_use(case, installation)
        assert same(case.untouched, everything(case.model))


def _cancelled_in_use(case: Case, installation: WeightEdit) -> None:
    with installed(case.model, ((installation, 0.5),)):
        assert not same(case.untouched, everything(case.model))
        raise Cancelled


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
    """To the bit; a placeholder is then the word it started from."""
    edit = METHODS[case.name].edit(case.model, case.weights)
    starts = TextEdit({name: TokenRows(rows.start, rows.start) for name, rows in edit.tokens.items()}, {})
    with torch.no_grad():
        base = case.model.predict(
            *NOISY, text_kv(case.model, [Prompt(text, ((starts, 1.0),)) for text in TEXTS])
        )
    assert torch.equal(case.predicted(case.weights, 0.0), base)


def test_deltas_agree_with_the_models_output(case: Case) -> None:
    """Adding the deltas to the denoiser's own weights, and the words alone, predict what the weights predict; at a key
    itself, where they are not additive.

    What a weight-side method changes beside Linear and Conv weights is added from its installation.
    """
    method, model = METHODS[case.name], case.model
    edit, deltas = method.edit(model, case.weights), method.deltas(model, case.weights)
    if isinstance(deltas, NotAdditive):
        for name, gated in edit.gated.items():
            weight = model.denoiser.get_parameter(f"{name}.weight")
            read = gated_change(gated.keys, weight, [(gated, 1.0)])
            torch.testing.assert_close(gated.keys @ deltas[name].T, read, atol=2e-5, rtol=1e-4)
        assert deltas.keys() == edit.gated.keys()
        return
    installation = method.installation(model, case.weights) or WeightEdit()
    assert {site.name for site in model.sites()} >= deltas.keys()
    added = {model.denoiser.get_parameter(f"{name}.weight"): delta for name, delta in deltas.items()}
    for module, changes in (
        (model.denoiser, installation.denoiser),
        (model.text_encoder, installation.text_encoder),
    ):
        added = {module.get_parameter(name): change.dense() for name, change in changes.items()} | added
    words = [Prompt(text, ((TextEdit(edit.tokens, {}), 1.0),)) for text in TEXTS]
    predicted = case.predicted(case.weights)
    with torch.no_grad():
        kept = {parameter: parameter.clone() for parameter in added}
        for parameter, delta in added.items():
            parameter.add_(delta)
        by_hand = model.predict(*NOISY, text_kv(model, words))
        for parameter, before in kept.items():
            parameter.copy_(before)
    torch.testing.assert_close(predicted, by_hand, atol=2e-5, rtol=1e-4)


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


@pytest.mark.parametrize("backbone", get_args(Backbone))
@pytest.mark.parametrize("method", CARDS)
def test_presets_of_every_backbone_are_valid_parameters(method: str, backbone: Backbone) -> None:
    card = CARDS[method]
    assert set(card.presets) == set(get_args(Backbone))
    presets = card.presets[backbone]
    assert {"quick", "balanced", "thorough"} <= set(presets) <= set(get_args(Preset))
    assert list(presets) == list(card.presets[SHIPPED])  # a preset's name is one on every base
    sides = [card.side(card.params_type.model_validate(preset, strict=True)) for preset in presets.values()]
    assert set(sides) <= {"text", "weights"}


def test_the_analysis_names_every_changed_layer(case: Case) -> None:
    """Linear and Conv of the denoiser, and what is changed beside them: norms, the text encoder."""
    method, found = METHODS[case.name], weight_change(case.model, case.weights)
    installation = method.installation(case.model, case.weights) or WeightEdit()
    encoder = {path.rpartition(".")[0].removeprefix("text_model.") for path in installation.text_encoder}
    denoiser = {path.rpartition(".")[0] for path in installation.denoiser}
    deltas = method.deltas(case.model, case.weights).keys()
    assert {change.site for change in found.sites if change.group == "text-encoder"} == encoder
    assert {change.site for change in found.sites if change.group != "text-encoder"} == deltas | denoiser
    assert {each.group for each in found.groups} == found.mean_by_group.keys()


def test_made_smaller_they_are_weights_of_their_method(case: Case) -> None:
    """Cut by nothing they predict the same; cut to the words alone, what the words predict; the model stays itself."""
    run, parent = InProcessRun(), "019a0000-0000-7000-8000-000000000000"
    whole = Compression(criterion="energy", value=1.0, precision="float32")
    if why := CARDS[case.name].small_already:
        with pytest.raises(InputInvalid, match=why):
            compress(case.model, case.weights, whole, parent, run)
        return
    smaller = compress(case.model, case.weights, whole, parent, run).weights
    torch.testing.assert_close(case.predicted(smaller), case.predicted(case.weights), atol=2e-5, rtol=1e-4)
    words = compress(
        case.model, case.weights, Compression(criterion="token-only", value=0, precision="int8"), parent, run
    )
    assert len(words.weights.to_bytes()) < len(case.weights.to_bytes())
    wanted = Compression(criterion="bytes", value=words.report.bytes_after + 4000, precision="int8")
    between = compress(case.model, case.weights, wanted, parent, run)
    assert len(between.weights.to_bytes()) <= wanted.value
    assert 0 < between.report.relative_error < words.report.relative_error == 1
    assert bool(case.predicted(between.weights).isfinite().all())
    edit = TextEdit(METHODS[case.name].edit(case.model, case.weights).tokens, {})
    with torch.no_grad():
        alone = case.model.predict(
            *NOISY, text_kv(case.model, [Prompt(text, ((edit, 1.0),)) for text in TEXTS])
        )
    assert torch.equal(case.predicted(words.weights), alone)
    assert same(case.untouched, everything(case.model))
