"""Counter-seeded randomness: every draw is a pure function of (seed, stream name, step).

There is no generator state to save or restore: a run that was interrupted and resumed draws what an
undisturbed run draws (reliability 2.5). All generators live on the CPU, so a recipe draws the same numbers on
any device.
"""

from __future__ import annotations

import hashlib

import torch


def rng(seed: int, stream: str, step: int) -> torch.Generator:
    """A fresh CPU generator for one draw. Different (seed, stream, step) give independent sequences."""
    digest = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
