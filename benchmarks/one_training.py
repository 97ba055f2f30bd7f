"""``python -m benchmarks.one_training order.json``: one training in a process of its own, so that its peak is its own.

The prior images are made first and are not part of the time: they are shared by all concepts of a class. Without a GPU
the time is the processor's, so that other programs on the machine count as little as they can. The most memory is that
of the process (``VmHWM``, set back before the training), or of the device where there is one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from backend.schemas.methods import CARDS
from worker import device
from worker.ml.errors import MLError
from worker.ml.families import load_base
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import InProcessRun
from worker.ml.training.loop import train


def set_back_peak() -> None:
    """Begin measuring the most memory anew, of the process where the kernel lets us, and of the device."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    device.reset_peak()


def peak_bytes() -> int:
    """The most memory since ``set_back_peak``: of the device, else resident memory of this process."""
    if torch.cuda.is_available():
        return device.peak_bytes()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def train_one(order: dict[str, Any]) -> dict[str, Any]:
    """Train as ordered and write the weights; what it cost, or in words why the method cannot."""
    torch.set_num_threads(order["threads"])
    model = load_base(Path(order["base"]), device.torch_name())
    method, params = METHODS[order["method"]], CARDS[order["method"]].params_type(**order["params"])
    photos = [Path(photo) for photo in order["photos"]]
    concept = ConceptExamples(order["token"], order["class_noun"], order["kind"], photos)
    run = InProcessRun()

    def trainee() -> Any:
        return method.trainee(
            model, [concept], params, seed=order["seed"], prior_dir=Path(order["prior"]), previews=[], run=run
        )

    try:
        trainee()  # the prior images are there now
        set_back_peak()
        clock = time.monotonic if torch.cuda.is_available() else time.process_time
        began = clock()
        [weights] = train(model, [trainee()], run)
        seconds = clock() - began
    except MLError as refusal:
        return {"refused": str(refusal)}
    weights.save(Path(order["weights"]))
    return {
        "seconds": seconds,
        "seconds_of": "clock" if torch.cuda.is_available() else "processor",
        "peak_memory_bytes": peak_bytes(),
        "peak_memory_of": "device" if torch.cuda.is_available() else "process",
        "bytes": Path(order["weights"]).stat().st_size,
        "steps": weights.manifest.steps,
    }


def main() -> None:
    """The order's ``answer`` is written last: without it the training did not end."""
    order = json.loads(Path(sys.argv[1]).read_text())
    answer = train_one(order)
    staged = Path(order["answer"] + f".{os.getpid()}.tmp")
    staged.write_text(json.dumps(answer))
    staged.replace(order["answer"])


if __name__ == "__main__":
    main()
