"""DreamBooth: everything is trained, and stored as half-precision differences that rebuild the trained model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ml.teaching import everything, prepare, same, stark
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.errors import MethodUnsupported, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import installed
from worker.ml.methods import METHODS
from worker.ml.methods.dreambooth import denoiser_parameters, encoder_parameters
from worker.ml.run import InProcessRun
from worker.ml.training.loop import Progress, advance, train
from worker.ml.training.optimiser import NamedAdamW, check_optimiser
from worker.ml.training.trainee import Group, Trainee

METHOD = METHODS["dreambooth"]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prior")


def prepared(model: DiffusionModel, photos: list[Path], prior: Path, **params: Any) -> Trainee:
    return prepare(model, [stark(photos)], prior, method="dreambooth", **params)


def predicted(model: DiffusionModel, text: str = "a photo of a dog") -> Tensor:
    with torch.no_grad():
        return model.predict(torch.ones(1, 4, 8, 8), torch.tensor([300]), text_kv(model, [Prompt(text)]))


@pytest.mark.parametrize("text_encoder", [False, True])
def test_trained_is_everything_but_the_autoencoder_and_the_table_of_words(
    model: DiffusionModel, photos: list[Path], prior: Path, text_encoder: bool
) -> None:
    """T3: every parameter of the denoiser, norms and biases included; with the encoder, the row V* of its table."""
    trainee = prepared(
        model, photos, prior, text_encoder=text_encoder, learning_rate=1e-3, text_learning_rate=1e-4
    )
    groups = trainee.groups
    assert len(groups[0].tensors) == len(list(model.denoiser.parameters()))
    assert sum(t.numel() for t in groups[0].tensors.values()) == sum(
        p.numel() for p in model.denoiser.parameters()
    )
    assert (groups[0].learning_rate, groups[0].weight_decay) == (1e-3, 0.0)
    assert len(groups) == 1 + text_encoder
    if text_encoder:
        table = model.text_encoder.get_input_embeddings().weight  # type: ignore[operator]
        trained = sum(p.numel() for p in model.text_encoder.parameters()) - table.numel() + 32
        assert sum(t.numel() for t in groups[1].tensors.values()) == trained
        assert "token.stark.learned" in groups[1].tensors
        assert groups[1].learning_rate == 1e-4


def test_the_word_alone_learns_beside_the_denoiser(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    trainee = prepared(model, photos, prior, train_token=True, token_learning_rate=0.01)
    assert {name: each.numel() for name, each in trainee.groups[1].tensors.items()} == {
        "token.stark.learned": 32
    }
    assert (trainee.groups[1].learning_rate, trainee.groups[1].weight_decay) == (0.01, 0.0)
    [weights] = train(model, [trainee], InProcessRun())
    learned, start = (weights.tensors[f"token.stark.{part}"] for part in ("learned", "start"))
    assert not torch.equal(learned, start)
    assert not any(name.startswith("encoder.") for name in weights.tensors)


def test_nothing_learnt_is_the_base_model_to_the_bit(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """methods.md 2, test ii: the copies in their places, and differences of zero installed."""
    trainee = prepared(model, photos, prior, text_encoder=True)
    base = predicted(model)
    with trainee.installed():
        assert torch.equal(predicted(model), base)
    with installed(model, ((METHOD.installation(model, trainee.result(0)), 1.0),)):  # type: ignore[arg-type]
        assert torch.equal(predicted(model), base)


def test_stored_differences_rebuild_the_trained_model(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """methods.md 2, test iv, within half precision: 2^-11 of the difference or 3e-8."""
    kept = everything(model)
    trainee = prepared(
        model, photos, prior, text_encoder=True, learning_rate=1e-3, text_learning_rate=1e-4, steps=3
    )
    expected: dict[str, Tensor] = {}
    base = {**denoiser_parameters(model), **{f"te.{n}": p for n, p in encoder_parameters(model).items()}}

    def result(steps: int) -> ConceptWeights:
        """Inside the training the trained parameters are in their places."""
        both = {**denoiser_parameters(model), **{f"te.{n}": p for n, p in encoder_parameters(model).items()}}
        expected.update({name: parameter.detach().clone() for name, parameter in both.items()})
        return trainee.result(steps)

    [weights] = train(model, [replace(trainee, result=result)], InProcessRun())
    assert same(kept, everything(model))
    assert all(tensor.dtype == torch.float16 for name, tensor in weights.tensors.items() if "delta" in name)
    edit = METHOD.installation(model, weights)
    assert edit is not None
    with installed(model, ((edit, 1.0),)):
        found = {**denoiser_parameters(model), **{f"te.{n}": p for n, p in encoder_parameters(model).items()}}
        for name, parameter in found.items():
            difference = (expected[name] - base[name]).abs()
            assert bool(difference.any()), name
            bound = torch.clamp(difference * 2**-11, min=3.1e-8) + base[name].abs() * 2**-23
            assert bool(((parameter - expected[name]).abs() <= bound).all()), name


def test_without_the_prior_term_it_is_plain_fine_tuning(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """methods.md 2, test i: no prior images are made, and the loss is that of the photos."""
    run = InProcessRun()
    units = set()
    run.on_step = lambda unit, *_: units.add(unit)
    trainee = prepared(model, photos, Path("no-prior"), prior_weight=0.0, run=run)
    assert units == {"photos"}
    with trainee.installed():
        loss = advance(model, [Progress(trainee)], run)[0]
    assert loss.prior is None
    assert loss.total is loss.photos


def test_photos_are_called_by_word_and_class_and_prior_images_by_class(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    rows = prepared(model, photos, prior, batch_size=3).rows(0)
    texts = [rows.prompts[place].text for place in rows.prompt_of_row]
    assert texts[:3] == ["photo of a <stark> dog"] * 3
    assert all(text.startswith("photo of a dog") for text in texts[3:])
    assert list(rows.prior) == [False] * 3 + [True] * 3


def test_in_half_precision_it_is_refused(
    model: DiffusionModel, photos: list[Path], tiny_folder: Path
) -> None:
    from worker.ml.families import load_base

    with pytest.raises(MethodUnsupported, match="single precision"):
        prepared(load_base(tiny_folder, dtype=torch.bfloat16), photos, Path("no-prior"))


def put(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.pop(name) if tensor is None else held.update({name: tensor})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (put("site.conv_in.bias_delta", None), "lack the change of conv_in.bias"),
        (put("site.conv_in.delta", torch.zeros(32, 4)), r"conv_in.weight has shape \[32, 4\]"),
        (put("site.nowhere.delta", torch.zeros(2)), "does not have"),
        (put("encoder.final_layer_norm.delta", torch.zeros(32)), "lack the change of"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    model: DiffusionModel,
    photos: list[Path],
    prior: Path,
    spoil: Callable[[dict[str, Tensor]], object],
    sentence: str,
) -> None:
    weights = prepared(model, photos, prior).result(0)
    held = dict(weights.tensors)
    spoil(held)
    for use in (METHOD.edit, METHOD.installation, METHOD.deltas):
        with pytest.raises(WeightsInvalid, match=sentence):
            use(model, ConceptWeights(weights.manifest, held))


def test_recomputed_activations_give_the_same_gradients_and_keep_fewer(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    gradients, kept = [], []
    for recomputing in (False, True):
        trainee = prepared(model, photos, prior, gradient_checkpointing=recomputing, max_grad_norm=100.0)
        saved = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with trainee.installed():
            progress = Progress(trainee)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                advance(model, [progress], InProcessRun())
        gradients.append({name: tensor.grad for name, tensor in progress.tensors.items()})
        kept.append(saved)
        assert not any(
            getattr(module, "gradient_checkpointing", False) for module in model.denoiser.modules()
        )
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-8)
    assert kept[1] < 0.5 * kept[0]


def test_the_average_is_the_result_and_starts_from_the_base(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """``e_n = d_n e + (1 - d_n) p_n`` with d_n = min(d, (1 + n) / (10 + n)), once more in numpy."""
    options = {"steps": 4, "learning_rate": 1e-3, "text_encoder": True, "text_learning_rate": 1e-3}
    trainee = prepared(model, photos, prior, ema_decay=0.3, **options)
    names = ["site.conv_in.delta", "encoder.final_layer_norm.bias_delta", "token.stark.learned"]
    with trainee.installed():
        progress = Progress(trainee)
        start = {name: progress.tensors[name].detach().double().numpy().copy() for name in names}
        average = {name: each.copy() for name, each in start.items()}
        for step in range(1, 5):
            advance(model, [progress], InProcessRun())
            decay = min(0.3, (1 + step) / (10 + step))
            for name in names:
                moved = progress.tensors[name].detach().double().numpy()
                average[name] = decay * average[name] + (1 - decay) * moved
        last = {name: progress.tensors[name].detach().clone() for name in names}
        weights = trainee.result(4)
        assert all(torch.equal(progress.tensors[name], last[name]) for name in names)
    for name in names:
        expected = torch.from_numpy(average[name] - (0 if name.startswith("token.") else start[name]))
        torch.testing.assert_close(weights.tensors[name].double(), expected, rtol=2e-3, atol=1e-6)
        assert not torch.allclose(last[name].double(), torch.from_numpy(average[name]), rtol=0.0, atol=1e-5)


def test_eight_bits_are_refused_in_words_where_they_cannot_be(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    with pytest.raises(MethodUnsupported, match="needs a CUDA GPU"):
        prepared(model, photos, prior, optimiser="adamw-8bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(MethodUnsupported, match="package bitsandbytes"):
            check_optimiser("adamw-8bit", torch.device("cuda"))


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None,
    reason="needs a CUDA GPU and bitsandbytes",
)
def test_eight_bits_resume_as_if_undisturbed() -> None:
    def made(start: Tensor) -> tuple[Tensor, NamedAdamW]:
        tensor = start.cuda().requires_grad_(True)
        return tensor, NamedAdamW([Group({"w": tensor}, 1e-2, 0.0)], "adamw-8bit")

    def push(tensor: Tensor, optimiser: NamedAdamW, step: int) -> None:
        tensor.grad = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(step)).cuda()
        optimiser.step(1.0)

    start = torch.zeros(128, 128)
    whole, of_whole = made(start)
    for step in range(6):
        push(whole, of_whole, step)
    cut, of_cut = made(start)
    for step in range(3):
        push(cut, of_cut, step)
    resumed, of_resumed = made(cut.detach().cpu())
    of_resumed.restore(of_cut.state())
    for step in range(3, 6):
        push(resumed, of_resumed, step)
    assert torch.equal(resumed, whole)
    assert any(part.dtype == torch.uint8 for part in of_resumed.state().values())
