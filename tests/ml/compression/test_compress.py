"""Weights made smaller: right size, right error, and still weights of their method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.schemas.methods import CARDS
from backend.schemas.weights import Compression, Precision, TaughtToken, WeightsManifest
from worker.ml.analysis import weight_change
from worker.ml.compression import compress
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import InputInvalid, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS
from worker.ml.run import Cancelled, InProcessRun
from worker.ml.streams import rng

PARENT = "019a0000-0000-7000-8000-000000000000"
PRECISIONS = get_args(Precision)
BOUNDS = {"float32": 1e-6, "float16": 1e-3, "int8": 0.02}
"""Relative error of rounding alone."""


def weights_of(
    model: DiffusionModel, method: str, tensors: dict[str, Tensor], **params: Any
) -> ConceptWeights:
    """Weights with a word and these tensors, as if they had been learned."""
    card, described = CARDS[method], model.description
    checked = card.params_type(**params)
    word = model.initial_rows(1).float()
    return ConceptWeights(
        WeightsManifest(
            method=method, side="text" if card.side(checked) == "text" else "weights", base=described.id,
            base_family=described.family, base_hash=described.hash, prediction_type=model.prediction_type,
            tokens=[TaughtToken(token="stark", class_noun="dog", kind="subject")],
            params=checked.model_dump(mode="json"), seed=1, steps=2, code_version="0.1.0",
        ),
        {"token.stark.start": word, "token.stark.learned": word + 0.1, **tensors},
    )  # fmt: skip


def falling(shape: tuple[int, ...], seed: int, decay: float = 0.8) -> Tensor:
    """A matrix or kernel whose singular values fall geometrically."""
    flat = torch.randn(shape, generator=rng(seed, "falling", 0)).double().flatten(1)
    left, values, right = torch.linalg.svd(flat, full_matrices=False)
    size = 0.02 * (1 + seed % 3)
    return ((left * size * decay ** torch.arange(len(values)).double()) @ right).reshape(shape).float()


def custom_diffusion(model: DiffusionModel) -> ConceptWeights:
    sites = [site for layer in model.cross_attention() for site in (layer.key, layer.value)]
    changes = {f"site.{s.name}.delta": falling(tuple(s.weight.shape), n) for n, s in enumerate(sites)}
    return weights_of(model, "custom-diffusion", changes)


def dreambooth(model: DiffusionModel) -> ConceptWeights:
    changes = {}
    for number, (path, parameter) in enumerate(model.denoiser.named_parameters()):
        module, _, leaf = path.rpartition(".")
        shape = tuple(parameter.shape)
        change = (
            falling(shape, number)
            if len(shape) > 1
            else 0.01 * torch.randn(shape, generator=rng(number, "b", 0))
        )
        changes[f"site.{module}.{'delta' if leaf == 'weight' else f'{leaf}_delta'}"] = change.half()
    return weights_of(model, "dreambooth", changes)


def lora(model: DiffusionModel, *, text_side: bool) -> ConceptWeights:
    ready = {site.name for layer in model.cross_attention() for site in (layer.key, layer.value)}
    tensors: dict[str, Tensor] = {}
    chosen = [
        s
        for s in model.sites()
        if (s.name in ready if text_side else ".resnets." in s.name or s.name in ready)
    ]
    for number, site in enumerate(chosen):
        shape, ones = tuple(site.weight.shape), (1,) * (site.weight.ndim - 2)
        tensors[f"site.{site.name}.down"] = torch.randn((4, *shape[1:]), generator=rng(number, "down", 0))
        tensors[f"site.{site.name}.up"] = (
            torch.randn((shape[0], 4, *ones), generator=rng(number, "up", 0)) / 50
        )
        tensors[f"site.{site.name}.alpha"] = torch.tensor(6.0)
    return weights_of(
        model,
        "lora",
        tensors,
        rank=4,
        attention="key-value" if text_side else "all",
        convolution=not text_side,
    )


def adapter(
    model: DiffusionModel, method: str, parts: Callable[[int, int, int], dict[str, Tensor]], **params: Any
) -> ConceptWeights:
    """``parts(place, out, in)`` at every linear layer of the cross-attention."""
    sites = [site for site in model.sites() if site.group == "cross-attention"]
    tensors = {
        f"site.{site.name}.{part}": tensor
        for place, site in enumerate(sites)
        for part, tensor in parts(place, *site.weight.shape).items()
    }
    return weights_of(model, method, tensors, attention="cross", **params)


def dora(model: DiffusionModel) -> ConceptWeights:
    weights = lora(model, text_side=False)
    lengths = {
        f"{name.removesuffix('up')}magnitude": torch.randn(len(up), generator=rng(place, "lengths", 0)) / 20
        for place, (name, up) in enumerate(weights.tensors.items())
        if name.endswith(".up")
    }
    params = {**weights.manifest.params, "use_dora": True}
    return ConceptWeights(
        weights.manifest.model_copy(update={"params": params}), {**weights.tensors, **lengths}
    )


def products(place: int, out: int, inner: int) -> dict[str, Tensor]:
    """LoHa's, of rank 2."""
    shapes = {
        "first_down": (2, inner),
        "first_up": (out, 2),
        "second_down": (2, inner),
        "second_up": (out, 2),
    }
    drawn = {part: torch.randn(shape, generator=rng(place, part, 0)) / 4 for part, shape in shapes.items()}
    return {**drawn, "alpha": torch.tensor(3.0)}


def blocks(place: int, out: int, inner: int) -> dict[str, Tensor]:
    """LoKr's, 4 x 2 times a whole block."""
    first = torch.randn(4, 2, generator=rng(place, "first", 0))
    return {"first": first, "second": falling((out // 4, inner // 2), place, 0.4)}


MAKERS = {
    "custom-diffusion": custom_diffusion,
    "lora-text": lambda model: lora(model, text_side=True),
    "lora-weights": lambda model: lora(model, text_side=False),
    "dreambooth": dreambooth,
    "dora": dora,
    "loha": lambda model: adapter(model, "loha", products, rank=2),
    "lokr": lambda model: adapter(model, "lokr", blocks),
}

PAIRS = [(maker, precision) for maker in MAKERS for precision in PRECISIONS if maker != "dreambooth"] + [
    ("dreambooth", "int8")
]


def cut(
    model: DiffusionModel,
    weights: ConceptWeights,
    criterion: Any = "energy",
    value: float = 1.0,
    precision: Any = "float32",
) -> ConceptWeights:
    wanted = Compression(criterion=criterion, value=value, precision=precision)
    return compress(model, weights, wanted, PARENT, InProcessRun()).weights


def deltas(model: DiffusionModel, weights: ConceptWeights) -> dict[str, Tensor]:
    return dict(METHODS[weights.manifest.method].deltas(model, weights))


@pytest.mark.parametrize(("maker", "precision"), PAIRS)
def test_everything_kept_is_the_same_change_but_for_rounding(
    model: DiffusionModel, maker: str, precision: str, tmp_path: Path
) -> None:
    weights = MAKERS[maker](model)
    smaller = cut(model, weights, precision=precision)
    smaller.save(tmp_path / "w")
    read = ConceptWeights.load(tmp_path / "w")
    before, after = deltas(model, weights), deltas(model, read)
    assert before.keys() == after.keys()
    for name, delta in before.items():
        error = torch.linalg.vector_norm(after[name].double() - delta.double())
        assert error <= BOUNDS[precision] * torch.linalg.vector_norm(delta.double()), name
    assert read.manifest.parents == [PARENT]
    assert read.manifest.method == weights.manifest.method
    assert {change.site for change in weight_change(model, read).sites} >= before.keys()


@pytest.mark.parametrize("maker", MAKERS)
def test_the_report_says_what_is_in_the_file(model: DiffusionModel, maker: str) -> None:
    """Ranks and forms against the tensors' shapes, errors against the changes themselves, bytes against the file."""
    weights = MAKERS[maker](model)
    wanted = Compression(criterion="energy", value=0.7, precision="float16")
    found = compress(model, weights, wanted, PARENT, InProcessRun())
    report, smaller = found.report, found.weights
    assert report.bytes_before == len(weights.to_bytes())
    assert report.bytes_after == len(smaller.to_bytes()) < report.bytes_before
    before, after = deltas(model, weights), deltas(model, smaller)
    shown = {site.site.removeprefix("site."): site for site in report.sites}
    for name, delta in before.items():
        site = shown[name]
        lost = float(torch.linalg.vector_norm(after[name] - delta) / torch.linalg.vector_norm(delta))
        assert site.relative_error == pytest.approx(lost, rel=1e-3, abs=1e-4)
        assert site.discarded_energy <= 0.3 + 1e-9
        if site.form == "factors":
            assert len(smaller.tensors[f"site.{name}.down"]) == site.rank < site.full_rank
            assert site.discarded_energy == pytest.approx(lost**2, abs=1e-3)
        else:
            assert (site.form, site.rank) == ("whole", site.full_rank)
    assert 0 < report.relative_error < 0.6
    sizes = [point.bytes for point in report.curve]
    errors = [point.relative_error for point in report.curve]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("maker", "precision"), PAIRS)
def test_a_budget_is_kept_and_used(model: DiffusionModel, maker: str, precision: str) -> None:
    weights = MAKERS[maker](model)
    whole = len(weights.to_bytes())
    least = len(cut(model, weights, "token-only", 0, precision).to_bytes())
    errors = []
    for share in (0.5, 0.2, 0.05):
        budget = least + int(share * (whole - least))
        wanted = Compression(criterion="bytes", value=budget, precision=precision)
        found = compress(model, weights, wanted, PARENT, InProcessRun())
        assert found.report.bytes_after <= budget
        errors.append(found.report.relative_error)
        assert found.report.one_rank is not None
        assert found.report.discarded_energy**0.5 <= found.report.one_rank.relative_error + 1e-9
        if share == 0.5 and errors[-1] > 0.05:
            assert found.report.bytes_after > 0.9 * budget
    assert errors == sorted(errors)


def test_the_size_follows_the_formula(model: DiffusionModel) -> None:
    """``floats = sum of r (o + d)`` (methods.md 7), and less than 2 kB for each tensor's entry."""
    weights = custom_diffusion(model)
    for rank in (1, 4):
        smaller = cut(model, weights, "rank", rank, "float16")
        sites = [each for name, each in weights.tensors.items() if name.startswith("site.")]
        factors = 2 * sum(rank * (each.shape[0] + each.shape[1]) for each in sites)
        words = cut(model, weights, "token-only", 0)
        assert words.tensors.keys() == {"token.stark.learned", "token.stark.start"}
        rest = len(smaller.to_bytes()) - len(words.to_bytes()) - factors
        assert 0 < rest < 200 * 2 * len(sites)


def test_more_rank_is_less_error(model: DiffusionModel) -> None:
    weights = custom_diffusion(model)
    errors = [
        compress(model, weights, Compression(criterion="rank", value=rank, precision="float32"), PARENT, InProcessRun())
        .report.relative_error
        for rank in (1, 2, 4, 8, 16)
    ]  # fmt: skip
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)


def test_the_authors_criterion_keeps_the_component_that_reaches_the_share(model: DiffusionModel) -> None:
    weights = custom_diffusion(model)
    smaller = cut(model, weights, "nuclear", 0.6)
    for name, delta in weights.tensors.items():
        if name.startswith("site."):
            values = np.linalg.svd(delta.double().numpy(), compute_uv=False)
            rank = len(smaller.tensors[name.replace(".delta", ".down")])
            assert values[: rank - 1].sum() < 0.6 * values.sum() <= values[:rank].sum()


def test_a_cut_of_a_cut_and_cutting_twice(model: DiffusionModel) -> None:
    """The same cut again changes nothing but rounding; a smaller one is the cut of the original."""
    weights = custom_diffusion(model)
    once = cut(model, weights, "rank", 6)
    for other, expected in (
        (cut(model, once, "rank", 6), once),
        (cut(model, once, "rank", 2), cut(model, weights, "rank", 2)),
    ):
        mine, theirs = deltas(model, other), deltas(model, expected)
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], atol=1e-7, rtol=1e-5)


def test_the_same_cut_gives_the_same_bytes(model: DiffusionModel) -> None:
    weights = custom_diffusion(model)
    assert (
        cut(model, weights, "rank", 3, "int8").to_bytes() == cut(model, weights, "rank", 3, "int8").to_bytes()
    )


def test_no_change_takes_no_bytes(model: DiffusionModel) -> None:
    weights = custom_diffusion(model)
    held = dict(weights.tensors)
    first = next(name for name in held if name.startswith("site."))
    held[first] = torch.zeros_like(held[first])
    smaller = cut(model, ConceptWeights(weights.manifest, held), "energy", 0.9)
    assert first.removesuffix(".delta") not in {name.rpartition(".")[0] for name in smaller.tensors}
    assert first.split(".", 1)[1].removesuffix(".delta") not in deltas(model, smaller)


@pytest.mark.parametrize(
    ("criterion", "value", "sentence"),
    [("rank", 33, "from 1 to 32"), ("rank", 0, "from 1 to 32"), ("bytes", 100, "The words alone take")],
)
def test_what_cannot_be_is_refused(
    model: DiffusionModel, criterion: str, value: float, sentence: str
) -> None:
    with pytest.raises(InputInvalid, match=sentence):
        cut(model, custom_diffusion(model), criterion, value)


def test_words_alone_and_unknown_changes_are_refused(model: DiffusionModel) -> None:
    weights = custom_diffusion(model)
    with pytest.raises(InputInvalid, match="words alone"):
        cut(model, cut(model, weights, "token-only", 0), "rank", 1)
    site = next(iter(weights.site_parts()))
    strange = {**weights.tensors, f"site.{site}.shift": torch.ones(3)}
    with pytest.raises(WeightsInvalid, match="each once"):
        cut(model, ConceptWeights(weights.manifest, strange))


def test_a_cancel_stops_it(model: DiffusionModel) -> None:
    wanted = Compression(criterion="rank", value=1, precision="float16")
    run = InProcessRun(request="cancel")
    with pytest.raises(Cancelled):
        compress(model, custom_diffusion(model), wanted, PARENT, run)


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts.pop("scale"),
        lambda parts: parts.update(scale=parts["scale"][:1]),
        lambda parts: parts.update(up=parts["up"].float()),
        lambda parts: parts.update(alpha=torch.tensor(1.0)),
        lambda parts: parts.update(delta=torch.zeros(2, 2)),
        lambda parts: parts.update(down=parts["down"][:, :-1]),
    ],
)
def test_factors_that_do_not_fit_are_refused(model: DiffusionModel, change: Any) -> None:
    smaller = cut(model, custom_diffusion(model), "rank", 2, "int8")
    site = next(iter(smaller.site_parts()))
    parts = smaller.site_parts()[site]
    change(parts)
    held = {name: each for name, each in smaller.tensors.items() if not name.startswith(f"site.{site}.")}
    held |= {f"site.{site}.{part}": tensor for part, tensor in parts.items()}
    with pytest.raises(WeightsInvalid):
        deltas(model, ConceptWeights(smaller.manifest, held))


def test_weights_that_were_not_made_smaller_may_lack_nothing(model: DiffusionModel) -> None:
    smaller = cut(model, custom_diffusion(model), "rank", 2)
    pretending = smaller.manifest.model_copy(update={"compression": None})
    with pytest.raises(WeightsInvalid, match="each once"):
        deltas(model, ConceptWeights(pretending, smaller.tensors))
