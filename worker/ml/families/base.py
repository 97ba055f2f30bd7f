"""What the science needs of a loaded base model, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from backend.schemas.bases import Backbone, BaseDescription
from backend.schemas.methods import CARDS
from worker.ml.conditioning import Conditioning

Group = Literal["cross-attention", "self-attention", "rest"]
PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True, eq=False)
class Site:
    """A named Linear or Conv of the denoiser. ``name`` is its module path in diffusers (methods.md 0.5)."""

    name: str
    group: Group
    module: torch.nn.Module

    @property
    def weight(self) -> Tensor:
        """[out, in] or [out, in, kh, kw]."""
        weight: Tensor = self.module.get_parameter("weight")
        return weight

    def apply(self, states: Tensor) -> Tensor:
        """The module itself: [..., in] -> [..., out]."""
        out: Tensor = self.module(states)
        return out


@dataclass(frozen=True, eq=False)
class CrossAttention:
    """One cross-attention layer and the two matrices that read the text."""

    name: str
    key: Site
    value: Site


@dataclass(frozen=True, eq=False)
class TextStates:
    """``states`` [B, T, d] feed the cross-attention; ``pooled`` [B, d] is the state at the end-of-text token."""

    states: Tensor
    pooled: Tensor


class DiffusionModel(Protocol):
    """A loaded base model; what its network predicts is hidden inside. Its weights are never changed from
    outside.
    """

    cache_dir: Path | None
    """Where what is dear to derive from the base is kept between processes; None: nowhere, it is made again."""
    derived: MutableMapping[Hashable, object]
    """What was derived from the base in this process, by what it was derived for; it goes with the model."""

    @property
    def description(self) -> BaseDescription: ...

    @property
    def prediction_type(self) -> PredictionType: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def cell(self) -> int:
        """Pixels per latent cell and axis."""

    @property
    def latent_channels(self) -> int: ...

    @property
    def vocabulary_size(self) -> int:
        """Ids from here on are virtual: rows given with the call."""

    @property
    def captions(self) -> tuple[str, ...]:
        """A corpus of captions that came with the base; may be empty."""

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The base's own scheduler configuration, diffusers' names."""

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network itself, for weight-side methods and for counting its parameters."""

    @property
    def text_encoder(self) -> torch.nn.Module:
        """The network that reads prompts, likewise."""

    def encode_images(self, pixels: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> latents [B, C, h, w], shifted and scaled. With ``rng``: a draw from the
        posterior.
        """

    def decode_latents(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W] in [-1, 1]."""

    def token_ids(self, text: str, virtual: Mapping[str, range]) -> list[int]:
        """Ids of ``text``, padded to the encoder's length; see `worker.ml.placeholders`."""

    def encode_prompts(self, ids: Tensor, rows: Tensor | None) -> TextStates:
        """ids [B, T]; virtual id ``vocabulary_size + i`` reads ``rows[i]`` [R, d_embedding]. Differentiable
        in the rows.
        """

    def initial_rows(self, count: int) -> Tensor:
        """[count, d_embedding]: rows of rare tokens from which placeholders start, each another one."""

    def word_rows(self, word: str) -> Tensor:
        """[pieces, d_embedding]: rows of the tokens of a word or phrase. Raises `InputInvalid` where it has none."""

    def mean_row_norm(self) -> float:
        """Mean Euclidean length of the rows of the vocabulary."""

    def noised(self, latents: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, t, target) with noise and t drawn on the CPU."""

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's prediction, same shape as the target of `noised`."""

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """``a_t^2 / s_t^2``, [B]."""

    def cross_attention(self) -> list[CrossAttention]:
        """Layers in the order of `TextKV`."""

    def sites(self) -> list[Site]:
        """Every Linear and Conv of the denoiser."""

    def group(self, path: str) -> Group:
        """The group of a module or parameter of the denoiser, by its path: of sites and of all others alike."""


def encoder_modules(model: DiffusionModel) -> dict[str, tuple[str, torch.nn.Module]]:
    """{name: (path, module)} of the text encoder's Linear modules; the name lacks the ``text_model.`` that some
    versions of the library put before the path (methods.md 16.1), so that it means the same module in all of them.
    """
    return {
        path.removeprefix("text_model."): (path, module)
        for path, module in model.text_encoder.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


@dataclass(frozen=True)
class Family:
    """A row of the table of families. ``has``: what methods may need; "text-kv" is cross-attention to text whose
    keys and values depend on the text alone (methods.md 0.5). ``backbone``: whose presets fit, where a base model does
    not say otherwise.
    """

    name: str
    title: str
    load: Callable[[Path, BaseDescription, str, torch.dtype], DiffusionModel]
    backbone: Backbone = "stable-diffusion"
    has: frozenset[str] = frozenset({"text-kv"})

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that can serve the family: those that need nothing it lacks."""
        return tuple(card.name for card in CARDS.values() if card.needs <= self.has)
