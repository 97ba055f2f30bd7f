"""The training step of Custom Diffusion in the order of the diffusers example script, written by us, as something to
compare with.

Every step encodes the pixels of its rows with the autoencoder, encodes the text of every row with the text encoder,
projects keys and values in the denoiser, and optimises the whole embedding table, the gradients of all rows but the
placeholder's set to zero, together with the key and value matrices. Same draws, same loss as ours.

Two departures make the losses comparable over several steps: decay is 0 in both, and the placeholder's row has its own
learning rate in both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.ml.families.stable_diffusion import StableDiffusion
from worker.ml.streams import rng
from worker.ml.training.losses import masked_squared_error, with_prior


@dataclass(frozen=True, eq=False)
class PixelRows:
    """What both orders are given: pixels [B, 3, H, W], the autoencoder's draw [B, C, h, w], masks, texts, prior."""

    pixels: Tensor
    posterior_noise: Tensor
    masks: Tensor
    captions: Sequence[str]
    prior: Sequence[bool]


class ExampleOrder:
    """Owns a copy of the text encoder with one more row, and copies of the key and value matrices."""

    def __init__(
        self,
        model: StableDiffusion,
        token: str,
        start: Tensor,
        *,
        learning_rate: float,
        token_learning_rate: float,
        seed: int,
    ) -> None:
        self.model, self.token, self.seed = model, token, seed
        self.text_encoder = copy.deepcopy(model.text_encoder)
        self.text_encoder.resize_token_embeddings(model.vocabulary_size + 1, mean_resizing=False)
        table = self.text_encoder.get_input_embeddings().weight
        with torch.no_grad():
            table[-1] = start[0]
        self.table: Tensor = table.requires_grad_(True)
        layers = model.cross_attention()
        self.modules: list[Any] = [site.module for layer in layers for site in (layer.key, layer.value)]
        self.matrices = [torch.nn.Parameter(module.weight.detach().clone()) for module in self.modules]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": self.matrices, "lr": learning_rate, "weight_decay": 0.0},
                {"params": [self.table], "lr": token_learning_rate, "weight_decay": 0.0},
            ],
            fused=True,
        )

    def step(self, rows: PixelRows, number: int) -> float:
        """One whole step; returns its loss before the update."""
        model = self.model
        self.optimiser.zero_grad(set_to_none=True)
        latents = encode(model, rows.pixels, rows.posterior_noise)
        noisy, t, target = model.noised(latents, rng(self.seed, "noise", number))
        virtual = {self.token: range(model.vocabulary_size, model.vocabulary_size + 1)}
        ids = torch.tensor([model.token_ids(caption, virtual) for caption in rows.captions])
        states = self.text_encoder(ids).last_hidden_state
        with self.installed():
            prediction = model.denoiser(noisy, t, encoder_hidden_states=states, return_dict=False)[0]
            loss = with_prior(masked_squared_error(prediction, target, rows.masks), rows.prior, 1.0).total
            loss.backward()  # type: ignore[no-untyped-call]
        assert self.table.grad is not None
        self.table.grad[: model.vocabulary_size] = 0.0
        torch.nn.utils.clip_grad_norm_([*self.matrices, self.table], 1.0)
        self.optimiser.step()
        return loss.item()

    @contextmanager
    def installed(self, *, detach_first: bool = True) -> Iterator[None]:
        """Our matrices in the denoiser, the start token's key and value detached; on exit the model is as before."""
        before = [module.weight for module in self.modules]
        hooks = [module.register_forward_hook(_first_detached) for module in self.modules if detach_first]
        for module, matrix in zip(self.modules, self.matrices, strict=True):
            module.weight = matrix
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module, weight in zip(self.modules, before, strict=True):
                module.weight = weight


def encode(model: StableDiffusion, pixels: Tensor, noise: Tensor) -> Tensor:
    """Posterior draw with given noise: [B, 3, H, W] -> [B, C, h, w], scaled."""
    with torch.no_grad():
        posterior = model.autoencoder.encode(pixels).latent_dist
        scaled: Tensor = (posterior.mean + posterior.std * noise) * model.autoencoder.config.scaling_factor
        return scaled


def _first_detached(module: torch.nn.Module, arguments: Any, projected: Tensor) -> Tensor:
    """As the example writes it: a mask of ones with zeros at the first position."""
    detach = torch.ones_like(projected)
    detach[:, :1, :] = 0.0
    return detach * projected + (1 - detach) * projected.detach()
