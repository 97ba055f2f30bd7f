"""What a child process that reads untrusted bytes may use: bounded memory, files and time, no dump, no secrets."""

from __future__ import annotations

import os
import resource

MEMORY_BYTES = 2_000_000_000
FILE_BYTES = 256_000_000


def confine(cpu_s: int | None = None) -> None:
    """Limit this process for good. ``cpu_s`` ends it after so much more computing."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    if cpu_s is not None:
        allow_cpu(cpu_s)


def allow_cpu(seconds: int) -> None:
    """End this process after so much computing from now on; may be called again for the next piece of work."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = int(used.ru_utime + used.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (total, resource.RLIM_INFINITY))


def environment() -> dict[str, str]:
    """What such a child knows of ours: where programs are, and nothing else."""
    return {"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
