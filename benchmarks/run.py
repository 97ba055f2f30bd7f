"""``python -m benchmarks.run [experiment ...]``: run what is missing of each experiment; all when none is named."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks import compression, merging, methods, subjects

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Parse, then hand each experiment to the module its ``kind`` names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "experiments", nargs="*", help="names of files in benchmarks/experiments, without .json"
    )
    parser.add_argument(
        "--only", default="", help="comma-separated targets; of the table of methods also methods"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/benchmarks"), help="pictures and prior images"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.experiments or sorted(path.stem for path in (HERE / "experiments").glob("*.json"))
    for name in names:
        path = HERE / "experiments" / f"{name}.json"
        kind = json.loads(path.read_text())["kind"]
        only = [slug for slug in arguments.only.split(",") if slug]
        KINDS[kind](path, HERE / "results", arguments.work, only)


KINDS = {
    "subjects": subjects.run,
    "compression": compression.run,
    "methods": methods.run,
    "merging": merging.run,
}


if __name__ == "__main__":
    main()
