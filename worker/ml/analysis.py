"""What weights change, and how much (methods.md 3; singular values: methods.md 7).

``||theta' - theta||_F / ||theta||_F`` for every parameter that weights change, whatever their method: keys and values
of text-side weights, any weight, bias and gain of the denoiser and of the text encoder, and the rows of the words.
Groups and their means are those of Kumari et al., CVPR 2023 (arXiv 2212.04488), figure 2; the text encoder, without
its table of words, and the words are groups of their own. In float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, prod
from statistics import fmean, median
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from backend.schemas.weights import ChangeGroup, GroupChange, SiteChange, WeightsAnalysis
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import DenseChange, MatrixChange
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.readers import reader_of
from worker.ml.singular_values import of_matrix

LISTED_VALUES = 32
TINY_NORM = 1e-6


@runtime_checkable
class KnownSpectrum(Protocol):
    """A change that knows the singular values of its dense matrix [out, in kh kw] without making it."""

    def singular_values(self) -> Tensor:
        """Float64, largest first; values that are missing at the end are 0."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Norms of one parameter and of its change; ``singular`` of the change of a matrix. ``named``: the weights name
    it, though the change may be 0.
    """

    shape: list[int]
    norm: float
    change: float = 0.0
    singular: Tensor | None = None
    named: bool = False

    @property
    def counts(self) -> bool:
        """Whether a relative change means anything."""
        return self.norm >= TINY_NORM

    @property
    def relative(self) -> float:
        return self.change / self.norm


@dataclass(frozen=True, eq=False)
class Layer:
    """The parameters that a module holds itself, by leaf name: a weight, a bias."""

    path: str
    group: ChangeGroup
    parameters: dict[str, Measured]

    @property
    def counted(self) -> list[Measured]:
        return [each for each in self.parameters.values() if each.counts]

    @property
    def pooled(self) -> float:
        """Relative change of all that counts, taken together."""
        return hypot(*(each.change for each in self.counted)) / hypot(*(each.norm for each in self.counted))


def weight_change(model: DiffusionModel, weights: ConceptWeights) -> WeightsAnalysis:
    """Every changed layer, largest first, with the spectrum of the change of its weight; means per group; the change
    of each V*.

    A group's mean runs over all its weights, biases and gains, unchanged ones counting as 0; tensors with a norm
    below 1e-6 are left out, and counted: their ratio means nothing. Gated changes count as where the gate is open.
    Raises `WeightsInvalid` when the weights do not fit the model.
    """
    reader = reader_of(weights)
    text, installed = reader.edit(model, weights), reader.installation(model, weights) or WeightEdit()
    sites = {f"{name}.weight": change for name, change in text.sites.items()}
    if text.gated:
        sites |= {
            f"{name}.weight": DenseChange(delta) for name, delta in reader.deltas(model, weights).items()
        }
    layers = [
        *denoiser_layers(model, {**sites, **installed.denoiser}),
        *encoder_layers(model, installed.text_encoder),
    ]
    groups: dict[ChangeGroup, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.group, []).append(layer)
    tokens = token_change(weights)
    changes = [*(group_change(*each) for each in groups.items()), tokens_as_group(weights, tokens)]
    listed = [site_change(layer) for layer in layers if "weight" in layer.parameters and _is_listed(layer)]
    return WeightsAnalysis(
        sites=sorted(listed, key=lambda change: -change.relative_change),
        mean_by_group={each.group: each.mean for each in changes},
        token_change=tokens,
        groups=changes,
    )


def _is_listed(layer: Layer) -> bool:
    return layer.parameters["weight"].counts and any(each.named for each in layer.parameters.values())


def denoiser_layers(model: DiffusionModel, changes: Mapping[str, MatrixChange]) -> Iterator[Layer]:
    """Every module of the denoiser that holds parameters; ``changes`` by parameter path."""
    for path, parameters in _held(model.denoiser):
        yield Layer(path, model.group(path), _measured(path, parameters, changes))


def encoder_layers(model: DiffusionModel, changes: Mapping[str, MatrixChange]) -> Iterator[Layer]:
    """The same of the text encoder but for its table of words, whose rows no method changes; paths without the
    ``text_model.`` of some versions of the library (methods.md 16.1).
    """
    table = model.text_encoder.get_input_embeddings()  # type: ignore[operator]
    for path, parameters in _held(model.text_encoder):
        if model.text_encoder.get_submodule(path) is not table:
            measured = _measured(path, parameters, changes)
            yield Layer(path.removeprefix("text_model."), "text-encoder", measured)


def _held(network: torch.nn.Module) -> Iterator[tuple[str, dict[str, torch.nn.Parameter]]]:
    for path, module in network.named_modules():
        if own := dict(module.named_parameters(recurse=False)):
            yield path, own


def _measured(
    path: str, parameters: Mapping[str, torch.nn.Parameter], changes: Mapping[str, MatrixChange]
) -> dict[str, Measured]:
    return {
        leaf: measured(parameter, changes.get(f"{path}.{leaf}")) for leaf, parameter in parameters.items()
    }


@torch.no_grad()
def measured(parameter: Tensor, change: MatrixChange | None) -> Measured:
    """One parameter of the base and its change. Convolutions count as [out, in * kh * kw]."""
    shape = list(parameter.shape)
    norm = float(torch.linalg.vector_norm(parameter.cpu(), dtype=torch.float64))
    if change is None:
        return Measured(shape, norm)
    if parameter.ndim < 2:
        size = float(torch.linalg.vector_norm(change.dense().cpu(), dtype=torch.float64))
        return Measured(shape, norm, size, named=True)
    singular = (
        change.singular_values().cpu()
        if isinstance(change, KnownSpectrum)
        else of_matrix(change.dense().cpu().flatten(1))
    )
    return Measured(shape, norm, float(torch.linalg.vector_norm(singular)), singular, named=True)


def site_change(layer: Layer) -> SiteChange:
    """Of a layer with a weight that counts."""
    weight, bias = layer.parameters["weight"], layer.parameters.get("bias")
    singular = torch.zeros(0) if weight.singular is None else weight.singular
    squared = singular.square()
    energy = squared.cumsum(0) / squared.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return SiteChange(
        site=layer.path,
        group=layer.group,
        shape=weight.shape,
        relative_change=weight.relative,
        bias_change=bias.relative if bias is not None and bias.counts else None,
        pooled_change=layer.pooled,
        singular_values=singular[:LISTED_VALUES].tolist(),
        energy_by_rank=energy[:LISTED_VALUES].tolist(),
    )


def group_change(group: ChangeGroup, layers: Sequence[Layer]) -> GroupChange:
    """Over all parameters of the layers of a group."""
    parameters = [each for layer in layers for each in layer.parameters.values()]
    counted = [each.relative for each in parameters if each.counts]
    return GroupChange(
        group=group,
        tensors=len(counted),
        numbers=sum(prod(each.shape) for each in parameters),
        left_out=len(parameters) - len(counted),
        mean=fmean(counted) if counted else 0.0,
        median=median(counted) if counted else 0.0,
        pooled_mean=fmean([layer.pooled for layer in layers if layer.counted] or [0.0]),
    )


def tokens_as_group(weights: ConceptWeights, changes: Mapping[str, float]) -> GroupChange:
    """The rows of the words, a tensor for each placeholder."""
    values = list(changes.values())
    return GroupChange(
        group="tokens",
        tensors=len(values),
        numbers=sum(weights.tensors[f"token.{token}.learned"].numel() for token in changes),
        left_out=0,
        mean=fmean(values or [0.0]),
        median=median(values or [0.0]),
        pooled_mean=fmean(values or [0.0]),
    )


def token_change(weights: ConceptWeights) -> dict[str, float]:
    """``||V* - start|| / ||start||`` of each placeholder."""
    changes = {}
    for taught in weights.manifest.tokens:
        if not taught.vectors:
            continue
        start = weights.tensors[f"token.{taught.token}.start"].double()
        learned = weights.tensors[f"token.{taught.token}.learned"].double()
        norm = torch.linalg.vector_norm(start).clamp(min=TINY_NORM)
        changes[taught.token] = float(torch.linalg.vector_norm(learned - start) / norm)
    return changes
