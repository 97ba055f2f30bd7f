"""The denoiser and its text encoder: `UNet2DConditionModel` and `CLIPTextModel`, trained together from nothing.

Velocity prediction on latents [B, 4, 16, 16] with the scaled-linear schedule of Stable Diffusion, min-SNR
weight ``min(SNR, 5) / (SNR + 1)`` (Hang et al. 2023, for velocity), AdamW (0.9, 0.99), cosine, exponential
moving average, one caption in ten empty. A ring of encoded scenes is replayed, because encoding a scene costs
as much as denoising it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from worker.ml.toyworld.captions import caption
from worker.ml.toyworld.scenes import Curriculum, Scene, SpriteBank, draw, sample_scene
from worker.ml.toyworld.tokenizer import POSITIONS, token_ids

WIDTH = 192
MIN_SNR = 5.0
EMPTY_SHARE = 0.1


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """1.9 M parameters: 192 wide, 3 layers, 6 heads. The end token is the real one (methods.md 16.3)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=POSITIONS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_denoiser() -> UNet2DConditionModel:
    """Cross-attention at 8 x 8, 4 x 4 and in the middle; head size 32."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 160),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4, 5),
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule, velocity prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@dataclass
class SceneRing:
    """Encoded scenes, the newest ``capacity``. A scene gets a new caption whenever it is drawn."""

    vae: AutoencoderKL
    bank: SpriteBank
    tokenizer: CLIPTokenizer
    scale: float
    capacity: int = 24_000
    device: str = "cpu"
    latents: list[Tensor] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    oldest: int = 0

    def __post_init__(self) -> None:
        self.vae.to(self.device)

    @torch.no_grad()
    def add(self, rng: np.random.Generator, stage: Curriculum, count: int) -> None:
        """Draw and encode ``count`` new scenes."""
        scenes = [sample_scene(self.bank, rng, stage) for _ in range(count)]
        pixels = np.stack([draw(scene, self.bank, 64) for scene in scenes]).transpose(0, 3, 1, 2)
        inputs = torch.from_numpy(np.ascontiguousarray(pixels)) * 2 - 1
        posterior = self.vae.encode(inputs.to(self.device)).latent_dist
        mean, deviation = posterior.mean.cpu(), posterior.std.cpu()
        noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
        for latent, scene in zip((mean + deviation * noise) * self.scale, scenes, strict=True):
            if len(self.latents) < self.capacity:
                self.latents.append(latent.half())
                self.scenes.append(scene)
            else:
                self.latents[self.oldest], self.scenes[self.oldest] = latent.half(), scene
                self.oldest = (self.oldest + 1) % self.capacity

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Latents [count, 4, 16, 16] float32, scaled, and caption ids [count, POSITIONS]."""
        chosen = rng.integers(0, len(self.latents), count)
        texts = ["" if rng.random() < EMPTY_SHARE else caption(self.scenes[i], rng) for i in chosen]
        return torch.stack([self.latents[i] for i in chosen]).float(), torch.tensor(
            token_ids(self.tokenizer, texts)
        )


@dataclass(frozen=True)
class Noise:
    """The forward process: ``a_t`` and ``s_t`` with ``a_t^2 + s_t^2 = 1``, [1000] each."""

    a: Tensor
    s: Tensor

    @staticmethod
    def of(scheduler: DDIMScheduler) -> Noise:
        """From the scheduler's cumulative products."""
        return Noise(scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt())

    def example(self, latents: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``x_t``, ``t``, the velocity ``a_t eps - s_t z0`` and its min-SNR weight [B, 1, 1, 1]."""
        eps = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        t = torch.from_numpy(rng.integers(0, len(self.a), len(latents)))
        a, s = self.a[t].view(-1, 1, 1, 1), self.s[t].view(-1, 1, 1, 1)
        snr = (a / s) ** 2
        return a * latents + s * eps, t, a * eps - s * latents, snr.clamp(max=MIN_SNR) / (snr + 1)


def denoising_loss(
    denoiser: UNet2DConditionModel,
    encoder: CLIPTextModel,
    noise: Noise,
    latents: Tensor,
    ids: Tensor,
    *,
    rng: np.random.Generator,
) -> Tensor:
    """Weighted mean squared error of the velocity, a scalar."""
    x_t, t, target, weight = (part.to(denoiser.device) for part in noise.example(latents, rng))
    states = encoder(ids.to(denoiser.device))[0]
    predicted = denoiser(x_t, t, encoder_hidden_states=states, return_dict=False)[0]
    loss: Tensor = (weight * (predicted - target) ** 2).mean()
    return loss
