"""The device: preparing it, its memory, and what its errors mean. The only file that touches torch.cuda."""

from __future__ import annotations

import logging
import os
import re
import resource
from dataclasses import dataclass

import torch

log = logging.getLogger("moongate.device")

_STICKY = re.compile(
    r"device-side assert|illegal (memory access|address|instruction)|launch failure|misaligned address|"
    r"uncorrectable ECC|\bXid\b|(CUBLAS|CUDNN)_STATUS_(INTERNAL_ERROR|EXECUTION_FAILED|NOT_INITIALIZED)|"
    r"an illegal|unspecified launch",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fault:
    """What an error of the device means for the job. ``sticky``: this process can no longer use the device."""

    code: str
    message: str
    retryable: bool
    sticky: bool


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_name() -> str:
    """The device as torch calls it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def prepare(threads: int) -> str:
    """Set threads and determinism, run one tiny operation, and return the device's name for people.

    Raises RuntimeError when the device does not answer.
    """
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    probe = torch.ones(8, device=torch_name())
    if float((probe @ probe).item()) != 8.0:
        raise RuntimeError("the device computes wrongly")
    if torch_name() == "cuda":
        return str(torch.cuda.get_device_name(0))
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak() -> None:
    """Start measuring ``peak_bytes`` anew (a CPU's peak is the process's and cannot be reset)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """The most device memory used since ``reset_peak``; on a CPU the most memory of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def classify(error: BaseException) -> Fault | None:
    """What an error says about the device; None when it is not about the device."""
    seen: BaseException | None = error
    while seen is not None:
        no_room = isinstance(seen, RuntimeError) and "DefaultCPUAllocator: can't allocate" in str(seen)
        if no_room or isinstance(seen, (torch.OutOfMemoryError, MemoryError)):
            hint = "Fewer images, smaller ones or a smaller batch need less."
            return Fault(
                "gpu_out_of_memory", f"The device has too little memory for this job. {hint}", False, False
            )
        if isinstance(seen, RuntimeError) and _STICKY.search(str(seen)):
            return Fault("device_fault", "The device failed during this job. It is tried again.", True, True)
        seen = seen.__cause__ or seen.__context__
    return None
