"""Where a measurement was made: every result says it, so that numbers of different machines are never mixed."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Machine, threads and versions, without names of hosts or persons."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "moongate": version("moongate"),
    }
