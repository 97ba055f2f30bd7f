"""The autoencoder: `AutoencoderKL` with f = 4, trained on 32 px crops of scenes (it is convolutional).

Loss: L1 + half the L1 of image gradients + a small KL term, all per element of their own tensors
(toyworld.md). Pixels are in [-1, 1], latents are [B, 4, h, w].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from worker.ml.toyworld.budget import Budget
from worker.ml.toyworld.scenes import SpriteBank, draw, sample_scene

BATCH = 16
CROP_PX = 32
LEARNING_RATE = 2e-3
KL_WEIGHT = 3e-7


def new_autoencoder() -> AutoencoderKL:
    """0.9 M parameters, (32, 64, 64) channels, one layer a block."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def scene_pixels(bank: SpriteBank, rng: np.random.Generator, count: int, side: int) -> Tensor:
    """``count`` random scenes, float32 [count, 3, side, side] in [-1, 1]."""
    pictures = [draw(sample_scene(bank, rng), bank, side) for _ in range(count)]
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2)) * 2 - 1


def crops(bank: SpriteBank, rng: np.random.Generator) -> Tensor:
    """Two crops of each of eight scenes, mirrored at random: [16, 3, 32, 32]."""
    scenes = scene_pixels(bank, rng, BATCH // 2, 64)
    cut = []
    for scene in scenes:
        for _ in range(2):
            top, left = rng.integers(0, 64 - CROP_PX + 1, 2)
            one = scene[:, top : top + CROP_PX, left : left + CROP_PX]
            cut.append(one.flip(-1) if rng.random() < 0.5 else one)
    return torch.stack(cut)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 plus half the L1 of horizontal and vertical differences."""
    error = output - target
    return error.abs().mean() + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())


def train_autoencoder(
    bank: SpriteBank, folder: Path, budget: Budget, *, decoder_only: bool = False, device: str = "cpu"
) -> AutoencoderKL:
    """Train for the budget, saving to ``folder`` every few minutes; goes on from ``folder`` where there is one.

    ``decoder_only`` keeps the encoder, and so all latents, as they are: a later polish.
    """
    vae = AutoencoderKL.from_pretrained(folder) if (folder / "config.json").exists() else new_autoencoder()
    vae.to(device)
    trained = (
        [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
        if decoder_only
        else list(vae.parameters())
    )
    optimiser = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    rng = np.random.default_rng([1, budget.start_step])
    for step in budget.steps():
        for group in optimiser.param_groups:
            group["lr"] = budget.learning_rate(LEARNING_RATE * (0.5 if decoder_only else 1.0))
        pixels = crops(bank, rng).to(device)
        if decoder_only:
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample()
            loss = output_loss = reconstruction_loss(vae.decode(latents).sample, pixels)
        else:
            posterior = vae.encode(pixels).latent_dist
            output_loss = reconstruction_loss(vae.decode(posterior.sample()).sample, pixels)
            loss = output_loss + KL_WEIGHT * posterior.kl().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        budget.report(step, BATCH, loss=output_loss.item())
        if step % 500 == 499:
            vae.save_pretrained(folder)
    vae.save_pretrained(folder)
    return vae


@torch.no_grad()
def psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Peak signal-to-noise ratio of a round trip through the mean latent, dB; ``pixels`` [B, 3, H, W] in [-1,
    1].
    """
    output = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    mse = ((output - pixels) ** 2).mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4.0 / mse)).mean())
