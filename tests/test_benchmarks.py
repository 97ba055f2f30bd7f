"""The table of methods as it is made: a real training in a process of its own, a result that resumes, a table of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import methods
from benchmarks.grading import Bench
from benchmarks.methods import chosen, entries, markdown, summary
from benchmarks.targets import BLUEPRINT, blueprint_style
from worker.ml.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
TINY: dict[str, Any] = {
    "methods": ["textual-inversion"],
    "targets": ["stark"],
    "params": {"steps": 2, "prior_images": 2, "prior_steps": 2, "batch_size": 1},
    "image_seeds": [101, 102],
    "num_inference_steps": 2,
}


def experiment(folder: Path, **changes: Any) -> Path:
    """The committed experiment with fewer of everything."""
    spec = json.loads((ROOT / "benchmarks/experiments/methods.json").read_text())
    changed = {**spec, "prompts": spec["prompts"][:2], "style_prompts": spec["style_prompts"][:2], **changes}
    file = folder / "tiny.json"
    file.write_text(
        json.dumps({**changed, "base": str(ROOT / spec["base"]), "subjects": str(ROOT / spec["subjects"])})
    )
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("table")
    results, work = folder / "results", folder / "work"
    results.mkdir()
    file = experiment(folder, **TINY)
    methods.run(file, results, work)
    return file, results, work


def test_a_result_says_what_was_measured_by_whom_and_at_what_cost(made: tuple[Path, Path, Path]) -> None:
    file, results, work = made
    [path] = (results / "tiny").glob("*.json")
    assert path.name == "textual-inversion-balanced--stark.json"
    result = json.loads(path.read_text())
    bench = Bench.load(file, results, work / "tiny")
    assert bench.is_current(result)
    assert result["params"]["steps"] == result["steps"] == 2
    assert np.isfinite([result[name] for name in methods.MEASURES]).all()
    assert len(result["subject_similarity_per_seed"]) == 2
    assert result["bytes"] == (work / "tiny/weights" / f"{path.stem}.safetensors").stat().st_size
    assert result["peak_memory_bytes"] > 50_000_000
    told = json.loads((results / "tiny.json").read_text())
    row = told["subject"]["textual-inversion-balanced"]
    assert (row["n"], row["targets"], row["seconds"]["half_width_95"]) == (1, ["stark"], None)
    assert "| Textual Inversion | balanced | 1 |" in (results / "tiny.md").read_text()
    with Image.open(results / "tiny-stark.webp") as sheet:
        assert sheet.size == (2 * (methods.LABEL_PX + 4 * 64), 2 * 2 * 64)


def test_what_is_measured_is_not_measured_again_until_it_differs(made: tuple[Path, Path, Path]) -> None:
    file, results, work = made
    [path] = (results / "tiny").glob("*.json")
    before = path.stat().st_mtime_ns
    methods.run(file, results, work)
    assert path.stat().st_mtime_ns == before
    bench, result = Bench.load(file, results, work / "tiny"), json.loads(path.read_text())
    [entry] = entries(bench)
    assert methods.is_current(bench, entry, result)
    assert not methods.is_current(bench, replace(entry, params={**entry.params, "steps": 3}), result)
    assert not methods.is_current(bench, entry, {**result, "judges_hash": "ff"})


def test_every_method_of_the_registry_has_a_row(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, results, work = made
    bench = Bench.load(experiment(tmp_path, presets=["quick", "balanced"]), results, work)
    served = [name for name in METHODS if name in bench.model.description.methods]
    assert [entry.key for entry in entries(bench)] == [
        f"{name}-{preset}" for name in served for preset in ("quick", "balanced")
    ]
    found = methods.targets(bench)
    assert [one.slug for one in found] == ["stark", "domino", "bluebell", "rover", BLUEPRINT]


def test_two_processes_share_the_table_by_names(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, results, work = made
    bench = Bench.load(experiment(tmp_path), results, work)
    known = {one.slug for one in methods.targets(bench)}
    pairs = {
        (entry.key, taught.slug): (entry, taught)
        for entry in entries(bench)
        for taught in methods.targets(bench)
    }

    def asked(*only: str) -> set[tuple[str, str]]:
        return {key for key, pair in pairs.items() if chosen(only, *pair, known)}

    assert asked() == set(pairs)
    assert asked("stark", "domino") | asked("bluebell", "rover", BLUEPRINT) == set(pairs)
    assert not asked("stark", "domino") & asked("bluebell", "rover", BLUEPRINT)
    assert asked("stark", "lora") == {("lora-balanced", "stark")}
    with pytest.raises(SystemExit, match="strak"):
        asked("strak")


def test_the_table_states_its_n_and_leaves_refusals_out(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, results, work = made
    bench = Bench.load(experiment(tmp_path), results, work)
    common = {"kind": "subject", **dict.fromkeys(methods.MEASURES, 0.5)}
    rows = [
        {**common, "target": "stark", "subject_similarity": 0.6},
        {**common, "target": "domino", "subject_similarity": 0.8},
        {"kind": "subject", "target": "rover", "refused": "It cannot."},
    ]
    found = summary(rows, "subject")
    assert (found["n"], found["targets"]) == (2, ["stark", "domino"])
    table = markdown(bench, {"subject": {"lora-balanced": found}, "style": {}})
    assert "| LoRA | balanced | 2 | 0.70 ± 1.27 | 0.50 ± 0.00 | 500.00 ± 0.00 |" in table
    assert "## A style" not in table


def test_the_blueprint_is_a_style_of_blue_ground_and_pale_lines(tmp_path: Path) -> None:
    index = ROOT / "backend/sample_photos/samples.json"
    style = blueprint_style(index, ["dog", "cat", "owl", "teapot"], tmp_path)
    assert (len(style.photos), len(style.reference), style.kind) == (2, 2, "style")
    assert not set(style.photos) & set(style.reference)
    with Image.open(style.photos[0]) as picture:
        pixels = np.asarray(picture, np.float32)
    assert pixels[..., 2].mean() > 1.5 * pixels[..., 0].mean()
    assert pixels.max() > 200
