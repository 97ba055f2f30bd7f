"""Base models of the classes of Stable Diffusion 1.x: toyworld, SD 1.4, SD 1.5 and everything tuned from
them.

``CLIPTokenizer``, ``CLIPTextModel`` (last hidden state after the final norm), ``AutoencoderKL``,
``UNet2DConditionModel``; noise or v prediction on the base's own schedule (methods.md 0.1-0.3).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel

from backend.schemas.bases import BaseDescription
from worker.ml.attention import cross_attention_modules, install_processors
from worker.ml.conditioning import Conditioning
from worker.ml.errors import BaseUnusable, InputInvalid
from worker.ml.families.base import CrossAttention, Group, PredictionType, Site, TextStates
from worker.ml.families.folder import load_tokenizer, read_captions, read_json, read_moongate, weight_files
from worker.ml.families.rare_tokens import initial_rows
from worker.ml.placeholders import token_ids


class StableDiffusion:
    """A `DiffusionModel`. Modules are in evaluation mode and need no gradient; nothing here changes a weight."""

    def __init__(
        self,
        description: BaseDescription,
        *,
        tokenizer: Any,
        text_encoder: Any,
        autoencoder: Any,
        denoiser: Any,
        scheduler_config: Mapping[str, Any],
        placeholder_initialiser: str | list[str] | None,
        captions: tuple[str, ...] = (),
    ) -> None:
        for module in (text_encoder, autoencoder, denoiser):
            module.requires_grad_(False).eval()
        install_processors(denoiser)
        self.cache_dir: Path | None = None
        self.derived: MutableMapping[Hashable, object] = {}
        self.description = description
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.autoencoder = autoencoder
        self.denoiser = denoiser
        self.scheduler_config = scheduler_config
        self.placeholder_initialiser = placeholder_initialiser
        self.captions = captions
        self.prediction_type: PredictionType = scheduler_config.get("prediction_type", "epsilon")
        self.cell: int = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        self.latent_channels: int = denoiser.config.in_channels
        self.vocabulary_size: int = text_encoder.get_input_embeddings().weight.shape[0]
        alphas_cumprod = DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod
        self.alphas_cumprod: Tensor = alphas_cumprod.to(denoiser.device)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._first_parameter.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._first_parameter.dtype
        return dtype

    @property
    def _first_parameter(self) -> Tensor:
        """All are on one device and of one type; diffusers' own properties look through every module for it."""
        parameter: Tensor = next(self.denoiser.parameters())
        return parameter

    # ---- pictures

    @torch.no_grad()
    def encode_images(self, pixels: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Posterior mean, or a draw from it with ``rng`` (on the CPU): [B, 3, H, W] -> [B, C, h, w]."""
        posterior = self.autoencoder.encode(pixels.to(self.device, self.dtype)).latent_dist
        latents: Tensor = posterior.mean
        if rng is not None:
            noise = torch.randn(latents.shape, generator=rng)
            latents = latents + posterior.std * noise.to(self.device, self.dtype)
        config = self.autoencoder.config
        scaled: Tensor = (latents - (config.shift_factor or 0.0)) * config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        config = self.autoencoder.config
        raw = latents.to(self.device, self.dtype) / config.scaling_factor + (config.shift_factor or 0.0)
        pixels: Tensor = self.autoencoder.decode(raw).sample
        return pixels

    # ---- text

    def token_ids(self, text: str, virtual: Mapping[str, range]) -> list[int]:
        return token_ids(self.tokenizer, text, virtual, self.description.prompt_limit_tokens)

    def encode_prompts(self, ids: Tensor, rows: Tensor | None) -> TextStates:
        """Virtual ids are read as id 0 and their embeddings replaced on the way, so nothing of the encoder
        changes.

        Id 0 is never the end of text, so the pooled state is taken at the end-of-text token also by encoders
        that look for the highest id (methods.md 16.3).
        """
        ids = ids.to(self.device)
        virtual = ids >= self.vocabulary_size
        with _rows_replaced(
            self.text_encoder.get_input_embeddings(), virtual, ids - self.vocabulary_size, rows
        ):
            out = self.text_encoder(torch.where(virtual, 0, ids))
        return TextStates(out.last_hidden_state, out.pooler_output)

    @torch.no_grad()
    def initial_rows(self, count: int) -> Tensor:
        table = self.text_encoder.get_input_embeddings().weight
        return initial_rows(self.tokenizer, table, count, self.placeholder_initialiser)

    @torch.no_grad()
    def word_rows(self, word: str) -> Tensor:
        ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputInvalid(f'"{word}" is no word that this base model could read.')
        table: Tensor = self.text_encoder.get_input_embeddings().weight
        return table[torch.tensor(ids, device=table.device)].clone()

    @torch.no_grad()
    def mean_row_norm(self) -> float:
        table: Tensor = self.text_encoder.get_input_embeddings().weight
        return float(torch.linalg.vector_norm(table.float(), dim=1).mean())

    # ---- denoising

    def noised(self, latents: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """``x_t = a_t z + s_t e``; target ``e``, or ``a_t e - s_t z`` for v prediction; t uniform (methods.md
        0, 0.1).
        """
        noise = torch.randn(latents.shape, generator=rng).to(latents)
        t = torch.randint(0, len(self.alphas_cumprod), (len(latents),), generator=rng).to(latents.device)
        signal = self.alphas_cumprod[t].sqrt()[:, None, None, None].to(latents)
        spread = (1.0 - self.alphas_cumprod[t]).sqrt()[:, None, None, None].to(latents)
        target = noise if self.prediction_type == "epsilon" else signal * noise - spread * latents
        return signal * latents + spread * noise, t, target

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        predicted: Tensor = self.denoiser(
            noisy.to(self.dtype), timesteps, encoder_hidden_states=conditioning.kv, return_dict=False
        )[0]
        return predicted

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        kept = self.alphas_cumprod[timesteps]
        return kept / (1.0 - kept)

    # ---- names

    @cached_property
    def _cross_attention(self) -> list[CrossAttention]:
        return [
            CrossAttention(
                name,
                Site(f"{name}.to_k", "cross-attention", attn.to_k),
                Site(f"{name}.to_v", "cross-attention", attn.to_v),
            )
            for name, attn in cross_attention_modules(self.denoiser)
        ]

    def cross_attention(self) -> list[CrossAttention]:
        return self._cross_attention

    def sites(self) -> list[Site]:
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        named = (
            (name, module) for name, module in self.denoiser.named_modules() if isinstance(module, kinds)
        )
        return [Site(name, self.group(name), module) for name, module in named]

    def group(self, path: str) -> Group:
        """methods.md 3: everything under ``attn2``, everything under ``attn1``, and the rest."""
        if ".attn2." in path:
            return "cross-attention"
        return "self-attention" if ".attn1." in path else "rest"


@contextmanager
def _rows_replaced(
    table: torch.nn.Module, virtual: Tensor, places: Tensor, rows: Tensor | None
) -> Iterator[None]:
    """While open, embeddings at ``virtual`` [B, T] are ``rows[places]``; differentiable in ``rows``."""
    if rows is None:
        yield
        return

    def replace(module: torch.nn.Module, arguments: Any, embedded: Tensor) -> Tensor:
        chosen = rows.to(embedded)[places.clamp(min=0)]
        return torch.where(virtual[..., None], chosen, embedded)

    handle = table.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def load(folder: Path, description: BaseDescription, device: str, dtype: torch.dtype) -> StableDiffusion:
    """Loads all parts from safetensors, offline. A missing or unexpected weight is a `BaseUnusable`."""
    parts = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL, "unet": UNet2DConditionModel}
    loaded = {}
    for component, kind in parts.items():
        weight_files(folder, component)
        try:
            loaded[component], report = kind.from_pretrained(
                folder / component,
                local_files_only=True,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
            raise BaseUnusable(
                f"The {component} of the base model cannot be loaded: {_first_line(error)}"
            ) from error
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if report.get(problem):
                names = ", ".join(sorted(map(str, report[problem]))[:3])
                raise BaseUnusable(
                    f"The {component} of the base model has {problem.replace('_', ' ')}: {names}."
                )
        loaded[component] = loaded[component].to(device)
    return StableDiffusion(
        description,
        tokenizer=load_tokenizer(folder),
        text_encoder=loaded["text_encoder"],
        autoencoder=loaded["vae"],
        denoiser=loaded["unet"],
        scheduler_config=read_json(folder / "scheduler/scheduler_config.json"),
        placeholder_initialiser=read_moongate(folder).placeholder_initialiser,
        captions=read_captions(folder),
    )


def _first_line(error: BaseException) -> str:
    """The first line of an error, without the paths it may carry."""
    words = (str(error).splitlines() or [type(error).__name__])[0].split()
    return " ".join(word for word in words if "/" not in word)[:200]
